"""The LightningModules: they average the model's loss, log it and step; the model owns the loss."""

import copy
import functools
import itertools
import time
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, Literal

import lightning as L
import torch
from torch import Tensor

from lightning_cfg.config import AtLeast, Between, Filled, NonNegative, Positive
from lightning_cfg.diffusion.draws import Draws, key, seed_generators
from lightning_cfg.errors import Diverged, UserError
from lightning_cfg.interfaces import DataSet
from lightning_cfg.runs.power_ema import Std
from lightning_cfg.training.ema import EMA
from lightning_cfg.training.learning_rate import share

__all__ = ["Classification", "Diffusion", "Refinement"]  # what a config can name

Beta = Annotated[float, Between(0, 1, below=True)]

NOISE_LEVELS = {  # of which the log has columns, such as loss_sigma_0.1
    "sigma": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    "t": (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95),
}


@dataclass(frozen=True)
class Described:
    """What a checkpoint says of its model: see `checkpoints.restore`."""

    config: dict
    shape: list[int]
    num_classes: int
    conditioned: dict | None = None  # the state of a `refinement.condition.Condition`
    class_names: list[str] | None = None

    @classmethod
    def of(cls, config: dict, data: DataSet) -> "Described":
        """That of a model of this config, trained on these data."""
        conditioned = None if data.condition is None else data.condition.state()
        names = None if data.class_names is None else [str(name) for name in data.class_names]
        classes = data.num_classes // (1 if conditioned is None else conditioned["values"])
        if names is not None and len(names) != classes:
            raise UserError(f"data has {len(names)} class_names, but {classes} classes")
        return cls(config, list(data.shape), data.num_classes, conditioned, names)


class Learner(L.LightningModule):
    """What the learners share: AdamW, warm-up, averages of the weights, a watch over the gradient.

    lr             learning rate, reached linearly over `warmup` steps
    warmup_images  or in proportion to the images seen, up to so many: EDM2's 10,000,000
    decay_after    steps from which it falls as one over the square root of the steps: EDM2's 70,000
    betas          of the averages of the gradient and of its square: EDM2's 0.9, 0.99
    bad_gradients  skip: a bad step is; zero: it is done with 0 for what is not finite in its
                   gradient, as EDM2's
    gradient_clip  largest norm of the gradient of all parameters; null or, as in Lightning, 0: as
                   it comes
    max_bad_steps  the run stops after so many bad steps in a row
    ema_half_life  half-lives of the averages in images; the first is used unless another is asked;
                   null: none
    ema_ramp       no half-life exceeds this fraction of the images seen so far
    ema_std        relative widths of averages by a power of time beside them, as EDM2's 0.05 and
                   0.10, of which others are made afterwards where `fit` keeps snapshots

    A step is bad if the norm of its gradient, before clipping, is not finite; a loss that is not
    finite makes it so. Unless bad_gradients says otherwise it is skipped: weights, averages and the
    optimiser's state stay as they were, and the step counts. After max_bad_steps of them in a row,
    or if not one of trainer.max_steps was good, the run stops with Diverged, and so it does where
    it would end with 3 bad steps or more, or with half of its steps bad, and where weights or
    averages are not finite. The last checkpoint is good either way. On a GPU, where looking means
    waiting, that is looked for every log_every steps and before a checkpoint is written.

    Logged every log_every steps: `loss`, averaged since the last time over all samples where it is
    finite, `loss_sigma_0.1` and so on (`loss_t_...` for flows), the same of those samples whose
    noise level is nearest to this one; `lr`; `gradient_norm` of this step before clipping;
    `bad_gradients`, the bad steps so far; `images_per_second` since the last time; on CUDA
    `peak_memory_gib`. For the noise level a model's loss says what it has drawn: `draws.level` =
    ("sigma" or "t", (b,)).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        lr: Annotated[float, Positive] = 1e-3,
        weight_decay: Annotated[float, NonNegative] = 0.0,
        warmup: Annotated[int, AtLeast(0)] = 0,
        warmup_images: Annotated[int, AtLeast(0)] = 0,
        decay_after: Annotated[int, AtLeast(1)] | None = None,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        bad_gradients: Literal["skip", "zero"] = "skip",
        gradient_clip: Annotated[float, NonNegative] | None = None,
        max_bad_steps: Annotated[int, AtLeast(1)] = 10,
        ema_half_life: Annotated[list[Annotated[int, AtLeast(1)]] | None, Filled] = (500_000,),
        ema_ramp: Annotated[float, NonNegative] = 0.05,
        ema_std: list[Std] = [],
    ):
        super().__init__()
        if ema_half_life is None and not ema_std:
            raise UserError("learner.ema_half_life=null leaves no average without learner.ema_std")
        self.model = model
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.share_of_lr = functools.partial(
            share, warmup=warmup, warmup_images=warmup_images, decay_after=decay_after
        )
        self.gradient_clip, self.max_bad_steps = gradient_clip, max_bad_steps
        self.zero_bad = bad_gradients == "zero"
        self.ema = EMA(model, list(ema_half_life or ()), ema_ramp, list(ema_std))
        self.described: Described | None = None
        self.logged: dict[str, float] = {}
        self.scores: dict[str, float] = {}  # of samples, by EvaluateSamples at step scored_at
        self.scored_at = -1
        # On the device and never looked at without need: bad steps so far, those in a row now, the
        # step at which they were too many, and sum and number of losses by noise level.
        self._bad, self._in_a_row, self._stop = (torch.tensor(n) for n in (0, 0, -1))
        self._tally = torch.zeros(max(map(len, NOISE_LEVELS.values())), 2)
        self._levels = ""  # which of NOISE_LEVELS the rows are
        self._edges = {name: edges(name) for name in NOISE_LEVELS}
        self._seconds_before, self._started = 0.0, time.monotonic()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning's, fifty times a step; a Module is slow at it
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def seconds(self) -> float:
        """Time spent on what the weights have learned, in all the calls that it took."""
        return self._seconds_before + time.monotonic() - self._started

    def images_a_step(self) -> int:
        """The batch size over all ranks and micro-batches."""
        return self.trainer.datamodule.batch_size

    def not_training(self, seconds: float) -> None:
        """Leave out of images_per_second what was spent on something else."""
        then, before = self._window
        self._window = then + seconds, before

    def publish(self, metrics: dict[str, float]) -> None:
        """Have callbacks find these numbers in trainer.callback_metrics, as by self.log."""
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})

    def check(self, data: DataSet) -> None:
        """UserError if it cannot learn from this data set."""
        name = type(self).__name__
        if data.has_sources:
            raise UserError(f"learner {name} would ignore the sources of the pairs: use Refinement")
        labels = data.augment_dim
        if not labels:
            return
        if self.model.augment_dim is None:
            name = type(self.model).__name__
            raise UserError(f"data.augment: the loss of model {name} takes no augmentation labels")
        if labels != (places := self.model.augment_dim):
            raise UserError(
                f"data.augment: the network must be told what was done, net.augment_dim={labels}; "
                f"{type(self.model.net).__name__} here has {places}"
            )

    def averaged(self) -> torch.nn.Module:
        """A frozen copy of the model with the first average, which is what `generate` uses."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        average = next(iter(self.ema.averages.values()))
        for parameter, value in zip(model.parameters(), average, strict=True):
            parameter.copy_(value)
        return model

    def losses(self, batch: dict, draws: Draws) -> Tensor:
        """The model's loss for each sample of the batch, (b,)."""
        augment = {"augment": batch["augment"]} if "augment" in batch else {}
        return self.model.loss(batch["y"], batch["c"], draws, **augment)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        draws = batch["draws"]
        # Dropout draws from the global generators: keyed too, and different on every rank.
        seed_generators(
            next(self.parameters()).device, key("global", draws.seed, draws.step, draws.rows.start)
        )
        losses = self.losses(batch, draws)
        self._count(losses.detach(), draws.level)
        loss = losses.mean()
        if self.zero_bad:
            return loss  # what it says of any weight is of use
        # NaN in every gradient, so also on the other ranks, and all of them skip the step
        return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=True,
        )

        def share_of(step: int) -> float:
            # before the first step there may be no trainer yet
            return self.share_of_lr(step, step * self.images_a_step() if step else 0)

        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *args: object, **kwargs: object
    ) -> None:
        """Measure the gradient and clip it; one that is not finite the optimiser is to skip."""
        gradients = [p.grad for p in self._trained if p.grad is not None]
        self._norm = norm = torch.nn.utils.get_total_norm(gradients)
        good = norm.device.type == "cpu" and isfinite(norm)  # where a look is no wait
        if self.zero_bad and not good:
            for gradient in gradients:
                gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            norm = torch.nn.utils.get_total_norm(gradients)
        if self.gradient_clip:
            torch.nn.utils.clip_grads_with_norm_(self._trained, self.gradient_clip, norm)
        if good:
            skip_if(optimizer, None)
            self._good = 1.0
            self._in_a_row.zero_()
            return
        bad = ~self._norm.isfinite()
        skipped = bad & (not self.zero_bad)
        skip_if(optimizer, skipped)
        self._good = (~skipped).float()
        self._bad = self._bad + bad
        self._in_a_row = (self._in_a_row + 1) * bad
        too_many = self._in_a_row >= min(self.max_bad_steps, self.trainer.max_steps)
        first = too_many & (self._stop < 0)
        self._stop = torch.where(first, self.trainer.global_step, self._stop)

    def on_fit_start(self) -> None:
        if not all(optimizer.defaults.get("fused") for optimizer in self.trainer.optimizers):
            raise UserError(
                f"learner {type(self).__name__}: its optimiser must be one with fused=True, "
                "which can skip a bad step"
            )
        self.ema.to(self.model)
        self._trained = list(self.model.parameters())  # to walk the modules takes time at each step
        # no buffers: DDP would give every rank the first one's
        self._bad, self._in_a_row = self._bad.to(self.device), self._in_a_row.to(self.device)
        self._stop, self._tally = self._stop.to(self.device), self._tally.to(self.device)
        self._edges = {name: e.to(self.device) for name, e in self._edges.items()}
        data = self.trainer.datamodule.data
        if self.device.type == "cuda":
            data.to(self.device)

    def on_train_start(self) -> None:
        self._window = time.monotonic(), self.trainer.global_step

    def optimizer_step(self, *args, **kwargs) -> None:
        # Here and not in a batch-end hook: callbacks, which save, run before the module's hooks.
        super().optimizer_step(*args, **kwargs)
        done = self.trainer.global_step + 1
        self.ema.update(done, self.images_a_step(), self._good)
        due = done % self.trainer.log_every_n_steps == 0
        if due or self.device.type == "cpu":
            self._stop_if_diverged()
        if due:
            self._log(done)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self._stop_if_diverged()
        if self.trainer.global_step >= self.trainer.max_steps:
            self.check_end()
        self._check_weights()
        described = {} if self.described is None else vars(self.described)
        checkpoint.update({key: value for key, value in described.items() if value is not None})
        checkpoint.update(ema=self.ema.state_dict(), seconds=self.seconds())
        checkpoint["watch"] = {
            "bad": int(self._bad),
            "in_a_row": int(self._in_a_row),
            "tally": self._tally.cpu(),
            "levels": self._levels,
            "logged": self.logged,
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.ema.load_state_dict(checkpoint["ema"])
        self._seconds_before = checkpoint.get("seconds", 0.0)
        if "watch" in checkpoint:
            watch = checkpoint["watch"]
            self._bad, self._in_a_row = (torch.tensor(watch[k]) for k in ("bad", "in_a_row"))
            self._tally, self._levels = watch["tally"], watch["levels"]
            self.logged = watch["logged"]

    def _count(self, losses: Tensor, level: tuple[str, Tensor] | None) -> None:
        """Add the losses (b,) to the tally, each in the row of the nearest noise level."""
        row = torch.zeros_like(losses, dtype=torch.long)
        if level is not None:
            self._levels, noise = level
            row = torch.bucketize(noise.to(self._edges[self._levels]), self._edges[self._levels])
        finite = losses.isfinite()
        both = torch.stack([torch.where(finite, losses, 0), finite.to(losses)], 1)
        self._tally.index_add_(0, row, both.to(self._tally))

    def _log(self, done: int) -> None:
        tally = self.trainer.strategy.reduce(self._tally.clone(), reduce_op="sum").tolist()
        self._tally.zero_()
        now, (then, before) = time.monotonic(), self._window
        self._window = now, done
        images = (done - before) * self.images_a_step()
        loss, samples = map(sum, zip(*tally, strict=True))
        self.logged = {
            "loss": loss / samples if samples else float("nan"),
            "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": float(self._norm),
            "bad_gradients": int(self._bad),
            "images_per_second": images / (now - then),
        }
        if self.device.type == "cuda":
            self.logged["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        for noise, (total, n) in zip(NOISE_LEVELS.get(self._levels, ()), tally, strict=False):
            if n:
                self.logged[f"loss_{self._levels}_{noise:g}"] = total / n
        # not by self.log, which would repeat the last value of a column that has none this time
        self.publish(self.logged)
        for logger in self.loggers:
            logger.log_metrics(self.logged, step=done)
            logger.save()

    def _stop_if_diverged(self) -> None:
        stop, n = int(self._stop), min(self.max_bad_steps, self.trainer.max_steps)
        if stop >= 0:
            raise _diverged(_bad_steps(stop - n + 1, n))

    def check_end(self) -> None:
        """Diverged if the run ends in bad steps, too few for max_bad_steps to have stopped it."""
        n, done = int(self._in_a_row), self.trainer.global_step
        if done and n >= min(3, (done + 1) // 2):
            raise _diverged(f"{_bad_steps(done - n, n)}, with which it ended")

    def _check_weights(self) -> None:
        averages = itertools.chain(*self.ema.averages.values())
        # apart: after its last step Lightning has moved the one to the CPU, and not the other
        for held in ([*self.model.parameters()], [*averages]):
            if not held or torch.stack([tensor.isfinite().all() for tensor in held]).all():
                continue
            done = self.trainer.global_step
            raise _diverged(f"weights or their averages are not finite after {done} steps")


def _bad_steps(first: int, n: int) -> str:
    others = f" and the {n - 1} after it" if n > 1 else ""
    return f"the loss or its gradient was not finite at step {first}{others}"


def _diverged(what: str) -> Diverged:
    return Diverged(
        f"{what}; the run stopped and its last good checkpoint is kept (a lower learner.lr or "
        "learner.gradient_clip may help)"
    )


def skip_if(optimizer: torch.optim.Optimizer, bad: Tensor | None) -> None:
    """Have a fused optimiser skip its next step if `bad`, (), without a look at the device.

    It reads this attribute, by which GradScaler has it skip a step.
    """
    optimizer.found_inf = None if bad is None else bad.float()


def edges(levels: str) -> Tensor:
    """Where one of the noise levels ends and the next begins: half way, in ln sigma or in t."""
    values = torch.tensor(NOISE_LEVELS[levels])
    below, above = values[:-1], values[1:]
    return (below * above).sqrt() if levels == "sigma" else (below + above) / 2


class Diffusion(Learner):
    """A base model: EDM, DDPM, or a Flow from noise."""


class Classification(Learner):
    """A classifier of noisy or clean samples."""

    def check(self, data: DataSet) -> None:
        super().check(data)
        if data.num_classes < 2:
            raise UserError(
                f"learner Classification needs data with 2 classes or more, not {data.num_classes}"
            )


class Refinement(Learner):
    """The flow from generated samples to their nearest real neighbours (Zhao & Schwing 2025)."""

    def check(self, data: DataSet) -> None:
        if not data.has_sources:
            raise UserError("learner Refinement needs data Pairs, whose batches have sources")
        if not self.model.takes_x0:
            name = type(self.model).__name__
            raise UserError(f"learner Refinement needs model Flow, whose loss takes x0, not {name}")

    def losses(self, batch: dict, draws: Draws) -> Tensor:
        between = {name: batch[name] for name in ("toward", "share") if name in batch}
        return self.model.loss(batch["y"], batch["c"], draws, x0=batch["x0"], **between)
