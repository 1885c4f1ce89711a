"""Training steps for benchmarks/gpu.py: as `fit` makes them, and in bare loops."""

import copy
import dataclasses
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from gpu_table import Found, Spread, free, now, timed
from roofline import Layer, layers, optimiser
from torch import Tensor, nn

from lightning_cfg.config import build, load
from lightning_cfg.data.build import build_data
from lightning_cfg.data.images import Images
from lightning_cfg.diffusion.draws import Draws, key, onto
from lightning_cfg.runs.checkpoints import build_model
from lightning_cfg.runs.precision import matmul
from lightning_cfg.runs.run import Run
from lightning_cfg.training.batches import KeyedBatches
from lightning_cfg.training.checkpointing import SaveLast
from lightning_cfg.training.learners import Described
from lightning_cfg.training.loggers import loggers_of
from lightning_cfg.training.progress import Progress
from lightning_cfg.training.speed import prepare
from lightning_cfg.training.stop import StopWhenAsked
from lightning_cfg.training.trainer import trainer_for
from lightning_cfg.training.undisturbed import undisturbed
from lightning_cfg.verbs.fit import RECIPE, fit

CONF = Path(__file__).parent.parent / "conf"
WARM = 3  # steps of Lightning's before the first that counts
NEVER = 10**9  # steps


class RandomBytes(Images):
    """Images of noise in 10 classes, in place of files that may not be there."""

    num_classes = 10

    def __init__(self, shape: tuple[int, ...], n: int = 50_000):
        self.shape = shape
        self._bank = torch.randint(256, (n, *shape), dtype=torch.uint8), torch.arange(n) % 10


@dataclass
class Task:
    """A config of `fit` with its data, which are made up where they are images."""

    recipe: dict
    data: Any
    tiny: bool = False
    counted: dict = field(default_factory=dict)

    @classmethod
    def of(
        cls, config: str, shape: tuple[int, ...], *, tiny: bool, net: dict, batch: int
    ) -> "Task":
        """That of conf/<config>; `net` and `batch` are taken instead where it is to be tiny."""
        asked = load(fit, CONF / config)
        recipe = copy.deepcopy({name: asked[name] for name in RECIPE})
        if tiny:
            recipe["net"] |= net
            recipe["batch_size"] = batch
        if len(shape) == 1:
            return cls(recipe, build_data(recipe["data"]), tiny)
        data = RandomBytes(shape, 64 if tiny else 50_000)
        data.flip = recipe["data"].get("flip", False)
        data.augmented(recipe["data"].get("augment", 0.0))
        return cls(recipe, data, tiny)

    @property
    def batch(self) -> int:
        return self.recipe["batch_size"]

    def sized(self, batch: int) -> "Task":
        """The same with another batch."""
        recipe = {**self.recipe, "batch_size": batch}
        return dataclasses.replace(self, recipe=recipe, counted={})

    def model(self) -> nn.Module:
        torch.manual_seed(key("init", self.recipe["seed"]))
        return build_model(self.recipe, self.data.shape, self.data.num_classes)

    def layers(self, *, size: int, training: bool = True, batch: int | None = None) -> list[Layer]:
        """What a pass of its network must do, with the optimiser and the averages in training."""
        batch = batch or self.batch
        if (kept := self.counted.get((size, training, batch))) is not None:
            return kept
        with torch.device("meta"):
            net = build("lightning_cfg.nets", self.recipe["net"], self.data.shape, 10)
            x, noise = torch.empty(batch, *self.data.shape), torch.empty(batch)
            c = torch.zeros(batch, dtype=torch.long)
        net.train(training)
        found = layers(lambda: net(x, noise, c), size=size, training=training)
        averages = len(self.recipe["learner"]["ema_half_life"])
        found = [*found, optimiser(net, averages=averages)] if training else found
        self.counted[size, training, batch] = found
        return found


class PlainDraws:
    """Random numbers as a plain loop draws them: on the device, from its generator."""

    level = None

    def __init__(self, batch: int, device: torch.device):
        self.batch, self.device = batch, device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, device=self.device)

    def uniform(self) -> Tensor:
        return torch.rand(self.batch, device=self.device)

    def integers(self, high: int) -> Tensor:
        return torch.randint(high, (self.batch,), device=self.device)


class Bare:
    """A loop as EDM's (Karras et al. 2022): no compilation, no framework, averages one by one.

    half   the forward pass in fp16, the loss scaled by 100, as EDM trained on ImageNet
    parts  of the batch that are done one after the other, where a whole one does not fit
    """

    def __init__(self, task: Task, device: torch.device, *, half: bool = False, parts: int = 1):
        self.task, self.device, self.half, self.parts = task, device, half, parts
        self.model = task.model().to(device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.recipe["learner"]["lr"])
        self.number = 0
        task.data.to(device)

    def step(self) -> None:
        self.number += 1
        size = self.task.batch
        batch = self.task.data.batch(Draws(seed=1, step=self.number, batch_size=size))
        batch = {name: value.to(self.device) for name, value in batch.items()}
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self.parts):
            self._backward({name: v.chunk(self.parts)[part] for name, v in batch.items()})
        for p in self.model.parameters():
            if p.grad is not None:
                torch.nan_to_num(p.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=p.grad)
        self.optimizer.step()
        weight = 1 - 0.5 ** (size / 500_000)
        for average, p in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.copy_(average.lerp(p.detach(), weight))

    def _backward(self, batch: dict) -> None:
        y, c = batch["y"], batch["c"]
        labels = {"augment": batch["augment"]} if "augment" in batch else {}
        draws: Any = PlainDraws(len(y), self.device)
        kind = self.device.type
        with torch.autocast(kind, torch.float16) if self.half else nullcontext():
            loss = self.model.loss(y, c, draws, **labels)
        scale = 100.0 if self.half else 1.0
        loss.float().sum().mul(scale / self.task.batch).backward()


def bare(task: Task, device: torch.device, *, half: bool, precise: bool) -> Found:
    """Its images a second; in as many parts as it takes to fit.

    precise  float32 products without TF32, as EDM has it on CIFAR-10
    """
    for parts in (1, 2, 4):
        seconds = _tried(task, device, half, "highest" if precise else "high", parts)
        if seconds is not None:
            note = f"in {parts} parts, as more do not fit" if parts > 1 else ""
            return Found.rate(seconds, task.batch, "images", note=note)
        free(device)
    raise MemoryError(f"a quarter of a batch of {task.batch} does not fit")


def _tried(
    task: Task, device: torch.device, half: bool, precision: str, parts: int
) -> Spread | None:
    """None where it does not fit; what it held is free once this has returned."""
    try:
        loop = Bare(task, device, half=half, parts=parts)
        with matmul(precision):
            return timed(loop.step, device, seconds=1.2, repeats=3, warm=1)
    except torch.OutOfMemoryError:
        return None


class Blocks(L.Callback):
    """After each block of Lightning's steps as many of the same learner's without Lightning.

    pairs    so many blocks of each
    seconds  of a block, about
    look     what is asked at the end, of the bare step
    """

    def __init__(self, task: Task, *, pairs: int, seconds: float, look: Callable | None):
        self.task, self.pairs, self.seconds, self.look = task, pairs, seconds, look
        self.lightning: list[float] = []
        self.own: list[float] = []
        self.number, self.first, self.looked = 0, 0.0, None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        # at the start of a step, so that a block has all of its last one, the loggers included
        step, device = trainer.global_step, pl_module.device
        if step == 0:
            self._start = now(device)
        elif step == 1:
            self.first = now(device) - self._start
        elif step == WARM - 1:
            self._start = now(device)
        elif step == WARM:
            one = max(1e-4, now(device) - self._start)
            self.steps = max(1, min(500, math.ceil(self.seconds / one)))
            self.step(trainer, pl_module)
            self._start, self._end = now(device), WARM + self.steps
        elif step == self._end and not trainer.should_stop:
            self.lightning.append((now(device) - self._start) / self.steps)
            start = now(device)
            for _ in range(self.steps):
                self.step(trainer, pl_module)
            self.own.append((now(device) - start) / self.steps)
            self._start, self._end = now(device), self._end + self.steps
            if len(self.own) == self.pairs:
                self._end = -1
                if self.look is not None:
                    try:
                        self.looked = self.look(lambda: self.step(trainer, pl_module))
                    except RuntimeError as error:  # such as a profiler that may not be used
                        self.looked = {"error": f"{type(error).__name__}: {error}"}
                trainer.should_stop = True

    def step(self, trainer: L.Trainer, learner: Any) -> None:
        """A step of the learner's: its loss, watch, optimiser and averages, in a plain loop."""
        self.number += 1
        optimizer, data, size = trainer.optimizers[0], trainer.datamodule.data, self.task.batch
        draws = Draws(seed=1, step=self.number, batch_size=size)
        batch = {name: onto(v, learner.device) for name, v in data.batch(draws).items()}
        with trainer.precision_plugin.forward_context():
            loss = learner.training_step({**batch, "draws": draws}, 0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        learner.configure_gradient_clipping(optimizer)
        optimizer.step()
        learner.ema.update(self.number, size, learner._good)


@dataclass
class Fitted:
    """Seconds of a step with Lightning's loop and without, of the first one, and what was seen."""

    lightning: Spread
    own: Spread
    first: float
    looked: dict | None = None


def fitted(
    task: Task,
    device: torch.device,
    speed: dict,
    *,
    mode: str | None = None,
    pairs: int = 3,
    seconds: float = 0.6,
    look: Callable | None = None,
) -> Fitted:
    """A training as `fit` makes it, with this speed (`speed_of`); mode: of torch.compile."""
    model = task.model()
    prepare(model, {**speed, "compile": speed["compile"] and mode is None})
    if speed["compile"] and mode is not None:
        model.net.compile(mode=mode)
    module = build("lightning_cfg.training.learners", task.recipe["learner"], model)
    module.described = Described.of(task.recipe, task.data)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    trainer = {"max_steps": NEVER, "accelerator": accelerator, "devices": 1}
    blocks = Blocks(task, pairs=pairs, seconds=0.0 if task.tiny else seconds, look=look)
    with tempfile.TemporaryDirectory() as folder, undisturbed(), matmul(speed["matmul_precision"]):
        run = Run(folder, "fit", {})
        save = SaveLast(run.directory, every=NEVER)
        engine = trainer_for(
            {**trainer, "precision": speed["precision"]},
            run.directory,
            logger=loggers_of("csv", run),
            log_every=50,
            callbacks=[Progress(), save, blocks, StopWhenAsked(save)],
        )
        engine.fit(module, KeyedBatches(task.data, seed=0, batch_size=task.batch))
    return Fitted(Spread.of(blocks.lightning), Spread.of(blocks.own), blocks.first, blocks.looked)


# of ranges that the profiler has on the card's time line beside kernels
MARKS = ("Optimizer.", "## ", "Torch-Compiled", "ProfilerStep", "CompiledFunction", "autograd::")
KINDS = {  # of kernels, by what their names contain; the first that fits
    "copies and layouts": ("memcpy", "memset", "nchwtonhwc", "nhwctonchw", "aten::copy_"),
    "optimiser and averages": ("multi_tensor", "adam", "foreach", "lpnorm"),
    "attention": ("flash", "fmha", "softmax", "attention", "bmm"),
    "normalisations": ("native_group_norm", "native_layer_norm", "groupnorm", "rowwisemoments",
                       "group_norm", "layer_norm"),
    "pointwise": ("triton_",),
    "convolutions and products": ("conv", "fprop", "dgrad", "wgrad", "gemm", "cutlass", "xmma",
                                  "nvjet", "cublas", "cudnn", "implicit", "addmm", "aten::mm"),
}  # fmt: skip
COUNTED = {  # the same of what `roofline` counts
    "convolution": "convolutions and products",
    "convolution backward": "convolutions and products",
    "product": "convolutions and products",
    "attention": "attention",
    "normalisation": "normalisations",
    "normalisation backward": "normalisations",
    "optimiser": "optimiser and averages",
}


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "pointwise"


def look(step: Callable[[], None]) -> dict:
    """Seconds by kernel of one step, by torch's profiler; and where the host waited for the card.

    On a CPU the operators' own seconds.
    """
    cuda, waits = torch.cuda.is_available(), Counter()
    if cuda:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for one in told:
            if "called a synchronizing" in str(one.message):
                waits[f"{Path(one.filename).name}:{one.lineno}"] += 1
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(
        activities=[kinds.CPU, kinds.CUDA] if cuda else [kinds.CPU]
    ) as seen:
        step()
        if cuda:
            torch.cuda.synchronize()
    kernels: Counter = Counter()
    for event in seen.events():
        on_card = event.device_type == torch.autograd.DeviceType.CUDA
        marked = getattr(event, "is_user_annotation", False) or event.name.startswith(MARKS)
        if cuda and on_card and not marked:
            kernels[event.name] += event.time_range.elapsed_us() * 1e-6
        elif not cuda:
            kernels[event.name] += event.self_cpu_time_total * 1e-6
    return {"kernels": dict(kernels), "waits": dict(waits)}
