"""A training that is interrupted ends as one that is not, bit for bit."""

import warnings

import pytest
import torch
from closeness import apart
from helpers.runs import assert_same
from helpers.toys import UNET

from lightning_cfg.runs.checkpoints import LAST, load
from lightning_cfg.verbs.fit import fit

HALVES = {"data": {"name": "helpers.toys.Halves"}, "net": UNET}  # whose net has dropout


def whole_and_resumed(training, folder, sections: dict, trainer: dict, **how) -> tuple:
    config = training(**sections, trainer=trainer) | how
    whole = fit(**config, run_dir=str(folder / "whole"))
    config["trainer"]["max_steps"] = 9
    fit(**config, run_dir=str(folder / "resumed"))
    config["trainer"]["max_steps"] = 20
    resumed = fit(**config, run_dir=str(folder / "resumed"))
    return whole / LAST, resumed / LAST


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("sections", [{}, HALVES], ids=["points", "images"])
def test_resumed_is_bit_for_bit_the_same(training, accelerator, tmp_path, sections, compile):
    """With trainer.deterministic: a GPU otherwise adds up some gradients in any order."""
    trainer = {"accelerator": accelerator, "deterministic": True}
    assert_same(*whole_and_resumed(training, tmp_path, sections, trainer, compile=compile))


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_without_it_they_differ_by_rounding_at_most(
    training, accelerator, tmp_path, compile, record_property
):
    """And whether they do is told: bit for bit is not promised here."""
    trainer = {"accelerator": accelerator, "precision": "32-true"}
    runs = whole_and_resumed(training, tmp_path, HALVES, trainer, compile=compile)
    one, other = (load(run)["state_dict"] for run in runs)
    equal = all(torch.equal(weight, other[name]) for name, weight in one.items())
    record_property("bit_for_bit", equal)
    if not equal:
        warnings.warn("resumed without trainer.deterministic: not bit for bit", stacklevel=1)
    both = [torch.cat([w.double().flatten() for w in state.values()]) for state in (one, other)]
    assert apart(*both) < 1e-2  # Adam makes large what rounding makes of a small gradient
