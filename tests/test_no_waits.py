"""A training step on a GPU waits for it nowhere: seen on stand-ins for its tensors, without one.

torch's FakeTensorMode has tensors "on CUDA" without numbers, so every operator of the step can be
looked at: what would have the host wait is a copy from or to the CPU that is not asynchronous, an
index on the other device, and a look at a number.
"""

import traceback
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_cfg.config import build
from lightning_cfg.data.images import Images
from lightning_cfg.data.mixtures import Fractal
from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.runs.checkpoints import build_model
from lightning_cfg.training.learners import Learner

CUDA = torch.device("cuda")
SONG = {"name": "SongUNet", "channels": 32, "channel_mult": [1], "blocks": 1, "augment_dim": 9}
ADM = {"name": "ADMUNet", "channels": 32, "channel_mult": [1], "blocks": 1,
       "attention_resolutions": [1]}  # fmt: skip
CLASSES = {"name": "MLP", "width": 8, "outputs": 2, "embed_class": False}


class Waits(TorchDispatchMode):
    """Writes down the operators that would have the host wait, and the line that called them."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        places = {t.device.type for t in [*tree_leaves(out), *read] if isinstance(t, torch.Tensor)}
        name = function.overloadpacket.__name__
        copies = "copy" in name and not (kwargs.get("non_blocking") or args[2:3] == (True,))
        mixed = any(t.device.type == "cpu" and t.ndim for t in read) and "copy" not in name
        looks = name in ("_local_scalar_dense", "nonzero") and read[0].is_cuda
        if looks or (len(places) > 1 and (copies or mixed)):
            stack = [f"{frame.name}:{frame.line}" for frame in traceback.extract_stack()
                     if "lightning_cfg/" in frame.filename]  # fmt: skip
            self.found.append(f"{name} in {stack[-1] if stack else 'torch'}")
        return out


class OnTheCard(Images):
    """Bytes that lie on a GPU, flipped and augmented."""

    shape, num_classes, flip = (3, 16, 16), 10, True

    def __init__(self, augment: float):
        self.augmented(augment)

    def to(self, device) -> None:
        bytes_ = torch.empty(20, *self.shape, dtype=torch.uint8, device=device)
        self._bank = bytes_, torch.zeros(20, dtype=torch.long, device=device)


class KnownRows(Draws):
    """Its order is no random permutation, which stand-ins have not."""

    def permuted(self, n):
        return torch.zeros(self.batch_size, dtype=torch.long)


def to_the_card(learner: Learner, data) -> None:
    """As Lightning and `on_fit_start` do it."""
    learner.to(CUDA)
    data.to(CUDA)
    learner.ema.to(learner.model)
    for name in ("_bad", "_in_a_row", "_stop", "_tally"):
        setattr(learner, name, getattr(learner, name).to(CUDA))
    learner._trained = list(learner.model.parameters())
    learner._edges = {name: edges.to(CUDA) for name, edges in learner._edges.items()}


def step(learner: Learner, data, draws: Draws) -> None:
    """A step but for the pass back, as Lightning has the learner make it."""
    batch = {name: onto(value, CUDA) for name, value in data.batch(draws).items()}
    learner.training_step({**batch, "draws": draws}, 0)
    optimizer = learner.configure_optimizers()["optimizer"]
    for parameter in learner.model.parameters():
        parameter.grad = torch.empty_like(parameter)
    learner.configure_gradient_clipping(optimizer)
    optimizer.step()
    learner.ema.update(3, draws.batch_size, learner._good)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda x: torch.zeros(2, 1, dtype=torch.long))
    trainer = SimpleNamespace(max_steps=10, global_step=3)
    monkeypatch.setattr(Learner, "trainer", trainer, raising=False)
    return FakeTensorMode(allow_non_fake_inputs=True)


def recipe(net: dict, model: dict, learner: str = "Diffusion") -> dict:
    section = {"name": learner, "gradient_clip": 1.0, "ema_half_life": [1000, 2000]}
    return {"net": net, "model": model, "learner": section}


@pytest.mark.parametrize(
    ("made", "data"),
    [
        (recipe(SONG, {"name": "EDM"}), lambda: OnTheCard(0.12)),
        (recipe(ADM, {"name": "Flow", "label_dropout": 0.1}), lambda: OnTheCard(0.0)),
        (recipe(ADM, {"name": "DDPM"}), lambda: OnTheCard(0.0)),
        (recipe({"name": "MLP", "width": 8}, {"name": "DDPM"}), Fractal),
        (recipe(CLASSES, {"name": "NoisyClassifier"}, "Classification"), Fractal),
    ],
    ids=["edm", "flow", "ddpm", "fractal", "classifier"],
)
def test_a_step_waits_for_no_gpu(made, data, stand_ins):
    data = data()
    model = build_model(made, data.shape, data.num_classes)
    learner = build("lightning_cfg.training.learners", made["learner"], model)
    with stand_ins:
        to_the_card(learner, data)
        with Waits() as waits:
            step(learner, data, KnownRows(seed=0, step=1, batch_size=4))
    assert waits.found == []


def test_a_step_that_waits_is_seen(stand_ins):
    with stand_ins, Waits() as waits:
        x, there = torch.empty(20, 3), torch.empty(20, device=CUDA)
        x.to(CUDA)
        x.to(CUDA, non_blocking=True)
        there[torch.zeros(4, dtype=torch.long)]
        there[torch.zeros(4, dtype=torch.long, device=CUDA)]
        there.copy_(x[:, 0])
        torch.where(there > 0, 1.0, there)
    assert [found.split()[0] for found in waits.found] == ["_to_copy", "index", "copy_"]
