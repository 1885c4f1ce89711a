"""Each network as `fit` runs it on a GPU against float32 on the CPU."""

import copy

import pytest
import torch
from closeness import BFLOAT16, FLOAT32, assert_within

from lightning_cfg import nets
from lightning_cfg.interfaces import NULL
from lightning_cfg.runs.precision import matmul
from lightning_cfg.training.speed import prepare

IMAGE, CLASSES, BATCH = (3, 16, 16), 3, 8
UNET = {"channels": 64, "channel_mult": (1, 2), "blocks": 1, "dropout": 0.0}
NETS = {
    "MLP": {"width": 32, "blocks": 2, "fourier": 4, "fourier_std": 1.0},
    "Linear": {},
    "ConvNet": {"channels": 16},
    "UnshuffleUNet": UNET,
    "ADMUNet": {**UNET, "attention_resolutions": (2,)},
    "ADMEncoder": {**UNET, "attention_resolutions": (2,)},
    "SongUNet": {**UNET, "attention_resolutions": (8,), "encoder": "residual"},
}
AS_FIT = {"precision": "bf16-mixed", "channels_last": True, "compile": True}
AS_FIT |= {"matmul_precision": "high"}
PLAIN = {"precision": "32-true", "channels_last": False, "compile": False}
PLAIN |= {"matmul_precision": "highest"}


def awake(name: str) -> torch.nn.Module:
    """A network of which no layer is left at zero."""
    torch.manual_seed(0)
    shape = (2,) if name in ("MLP", "Linear") else IMAGE
    net = getattr(nets, name)(shape, CLASSES, **NETS[name])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net


def asked(name: str, n: int = BATCH) -> tuple:
    g = torch.Generator().manual_seed(n)
    shape = (2,) if name in ("MLP", "Linear") else IMAGE
    c = torch.arange(n) % (CLASSES + 1) - 1  # NULL, 0, 1, 2, NULL, ...
    assert NULL in c
    return torch.randn(n, *shape, generator=g), torch.rand(n, generator=g), c


def answers(net: torch.nn.Module, inputs: tuple, device: torch.device, speed: dict) -> tuple:
    """The output, and the gradient of a sum of it with fixed signs, all parameters in a row."""
    half = speed["precision"] == "bf16-mixed"
    with matmul(speed["matmul_precision"]):
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            out = net(*(value.to(device) for value in inputs))
        signs = torch.ones(out.shape).flatten().cumsum(0).remainder(2).mul(2).sub(1)
        (out.float() * signs.reshape(out.shape).to(device)).sum().backward()
    gradients = [p.grad.flatten().float() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    return out.detach().float(), torch.cat(gradients)


def test_no_network_is_forgotten():
    assert set(NETS) == set(nets.__all__)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("speed", [PLAIN, AS_FIT], ids=["float32", "as_fit"])
def test_a_network_answers_and_learns_as_on_the_cpu(name, speed, device):
    """Eager in float32, where TF32 shows; and compiled, images in bfloat16 and channels-last."""
    net, inputs = awake(name), asked(name)
    expected, gradient = answers(copy.deepcopy(net), inputs, torch.device("cpu"), PLAIN)
    net.to(device)
    if name in ("MLP", "Linear"):  # which `fit` leaves in float32
        speed = PLAIN | {"compile": speed["compile"]}
    prepare(net, speed)
    out, slope = answers(net, inputs, device, speed)
    tolerance = FLOAT32 if speed["precision"] == "32-true" else BFLOAT16
    assert_within(tolerance, out, expected)
    assert_within(2 * tolerance, slope, gradient)


@pytest.mark.parametrize("name", ["MLP", "UnshuffleUNet"])
def test_compiled_in_float32_for_any_batch_and_without_a_class(name, device):
    """Another batch is compiled anew or for any size; None is NULL for all."""
    net = awake(name)
    ours = copy.deepcopy(net).to(device)
    prepare(ours, PLAIN | {"compile": True})
    for n, classes in ((8, True), (5, True), (3, True), (8, False)):
        x, noise, c = asked(name, n)
        with torch.no_grad(), matmul("highest"):
            given = (c.to(device),) if classes else ()
            found = ours(x.to(device), noise.to(device), *given)
            assert_within(FLOAT32, found, net(x, noise, c if classes else torch.full((n,), NULL)))
