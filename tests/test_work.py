"""What a plan says that stages will take: counted by hand, layer by layer."""

import pytest
import torch
from test_study_graph import graph
from torch import nn

from lightning_cfg.data import Fractal
from lightning_cfg.nets import MLP, ADMUNet, Linear
from lightning_cfg.studies.flops import PEAK, evaluations
from lightning_cfg.studies.work import DOPRI5, FLOAT32, Work, along, in_all, work


def products(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of its layers for one sample, by their sizes."""
    found = 0

    def add(layer: nn.Module, taken: tuple, given: torch.Tensor) -> None:
        nonlocal found
        each = layer.weight[0].numel()  # products of a number of what it gives
        found += each * given.numel()

    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(add)
    net(torch.zeros(1, *shape), torch.ones(1), torch.zeros(1, dtype=torch.long))
    return found


def test_every_stage_of_a_study_is_counted_by_its_networks_layers():
    changes = ["variants={few: {refinement: {method: heun, steps: 3}}}", "flows.dedicated=[]"]
    stages = graph("generation.sampler={name: heun, steps: 4}", *changes)
    found = {name: one.flop for name, one in work(stages, Fractal()).items()}
    base = 2 * (products(MLP((2,), 2, width=128, blocks=3, fourier=64), (2,)) + 2 * 64)
    linear = 2 * products(Linear((2,), 2), (2,))
    assert found["fit base"] == 3 * base * 1024 * 5000
    assert found["fit classifier"] == 3 * linear * 1024 * 1000
    assert found["fit flow classifier_free all"] == 3 * base * 1024 * 2500
    # seven evaluations; CFG has one pass at scale 1 and two beyond
    assert found["generate classifier_free 1 fresh"] == 5000 * 7 * base
    assert found["generate classifier_free 2 fresh"] == 5000 * 7 * 2 * base
    assert found["generate classifier_guidance 2 fresh"] == 5000 * 7 * (base + linear)
    assert found["refine classifier_free 2 all"] == 5000 * DOPRI5 * base
    assert found["refine classifier_free 2 few"] == 5000 * 6 * base
    assert set(found) == {n for n, s in stages.items() if s.verb in ("fit", "generate", "refine")}


def test_a_step_of_training_is_three_forward_passes():
    """Of the paper's UNet, by what torch counts of forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    net = ADMUNet((1, 8, 8), 10, channels=32, blocks=1, channel_mult=[1, 2],
                  attention_resolutions=[], dropout=0.0)  # fmt: skip
    x = torch.zeros(2, 1, 8, 8)
    with FlopCounterMode(display=False) as counted:
        net(x, torch.ones(2), torch.zeros(2, dtype=torch.long)).sum().backward()
    assert counted.get_total_flops() / 2 == pytest.approx(6 * products(net, (1, 8, 8)), rel=0.02)


@pytest.mark.parametrize(
    "leg, evaluations",
    [({}, DOPRI5), ({"method": "euler", "steps": 4}, 4), ({"method": "heun"}, 16),
     ({"method": "euler", "steps": 4, "scale": 2.0}, 8)],
)  # fmt: skip
def test_evaluations_along_a_flow(leg, evaluations):
    assert along(leg) == evaluations


@pytest.mark.parametrize("strength", ["permuted", "level_mean", 0.5])
def test_a_knock_out_takes_as_many_evaluations_as_the_method(strength):
    """Though it knows no strength of a sample alone."""
    asked = {"name": "heun", "steps": 3}, ["model", "classifier"]
    gfcg = {"name": "gfcg", "scale": 2.0, "classifier_input": "noisy"}
    assert evaluations({**gfcg, "strength": strength}, *asked) == evaluations(gfcg, *asked)


def test_minutes_are_told_where_there_are_some():
    assert str(Work(1e12, PEAK)) == "1e+12 FLOP"
    assert str(Work(0.15 * 60 * 5 * PEAK, PEAK)) == "4.5e+16 FLOP, 3 to 5 min of one H100"
    both = in_all({"a": Work(0.15 * 3600 * PEAK, PEAK), "b": Work(0.15 * 3600 * FLOAT32, FLOAT32)})
    assert "0:51:26 at 35% and 2:00:00 at 15%" in both
