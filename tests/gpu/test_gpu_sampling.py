"""Samples on a GPU are those of the CPU: seeds, samplers, guidance, gradients, trajectories."""

import copy

import pytest
import torch
from closeness import FLOAT32, assert_within
from torch import nn

from lightning_cfg import guidance
from lightning_cfg.diffusion import samplers
from lightning_cfg.diffusion.mixture import fractal
from lightning_cfg.diffusion.models import (
    DDPM,
    EDM,
    Flow,
    GuidanceFree,
    GuidanceWeight,
    NoisyClassifier,
)
from lightning_cfg.diffusion.trajectories import along, closest, over_time, straightness
from lightning_cfg.guidance import classifier_free, classifier_gradient, scales
from lightning_cfg.guidance.frequency_decoupled import low_frequencies
from lightning_cfg.nets import MLP, ADMEncoder
from lightning_cfg.refinement.solver import Solver, refined
from lightning_cfg.runs.precision import matmul
from lightning_cfg.sampling.guided import guide
from lightning_cfg.sampling.prepared import Counted
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded

CFG = {"name": "classifier_free", "scale": 2.0}
EULER = {"name": "euler", "steps": 6, "sigma_min": 0.02, "sigma_max": 80.0}
METHODS = {
    "unguided": {},
    "classifier_free": {"scale": 2.0},
    "classifier_gradient": {"scale": 2.0},
    "autoguidance": {"scale": 2.0},
    "gfcg": {"scale": 2.0, "combine": "additive", "classifier_input": "noisy"},
    "gfcg_autoguidance": {"scale": 2.0, "classifier_input": "noisy"},
    "interval": {"of": CFG, "sigma_low": 0.1, "sigma_high": 10.0},
    "rescale": {"of": CFG},
    "rejection": {"of": CFG, "candidates": 3},
    "cads": {"of": CFG, "psi": 0.5},
    "apg": {"scale": 2.0, "momentum": -0.5, "norm": 1.0},
    "cfg_plus_plus": {"scale": 0.6},
    "cfg_zero_star": {"scale": 2.0},
    "discriminator_gradient": {"scale": 2.0},
    "feedback": {"pi": 0.9},
    "learned_weight": {"scale": 2.0},
    "feynman_kac": {"scale": 2.0, "particles": 3},
    "higs": {"of": CFG},
    "momentum": {"of": CFG},
    "self_guidance": {"of": CFG},
    "tangential": {"scale": 2.0},
    "gibbs": {"scale": 2.0, "rounds": 1, "steps": 3},
    "guidance_free": {"scale": 2.0},
}
OF_IMAGES = {"frequency_decoupled"}
SCHEDULED = {"name": "classifier_free", "scale": {"name": "cosine", "scale": 3.0}}


def of_points(model: type, seed: int, **keys: object) -> nn.Module:
    """A small model of points, of which no layer is left at zero."""
    torch.manual_seed(seed)
    outputs = {"outputs": 2, "embed_class": False} if model is NoisyClassifier else {}
    made = model(MLP((2,), 2, width=32, blocks=1, fourier=4, fourier_std=1.0, **outputs), **keys)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    made.shape, made.num_classes = (2,), 2
    return made.eval().requires_grad_(False)


def networks(device: torch.device | str) -> dict[str, Counted]:
    net = MLP((2,), 2, width=8, blocks=1, outputs=1)
    strength = GuidanceWeight(net, of="not read in sampling").requires_grad_(False)
    strength.shape, strength.num_classes = (2,), 2
    made = {
        "strength": strength,
        "model": of_points(GuidanceFree, 0),
        "weak": of_points(EDM, 1),
        "classifier": of_points(NoisyClassifier, 2),
        "discriminator": of_points(NoisyClassifier, 3),
    }
    return {role: Counted(net.to(device)) for role, net in made.items()}


@torch.no_grad()
def samples(section: dict, sampler: dict, device: torch.device | str, n: int = 12) -> torch.Tensor:
    noise, c, draw = seeded(list(range(n)), (2,), 2, device=device)
    with matmul("highest"):
        *_, (_, x) = sample(sampler, guide(section, networks(device)), noise, c, draw)
    assert x.device.type == torch.device(device).type
    return x


def test_seeds_mean_the_same_noise_and_labels(device):
    here, there = (seeded([0, 7, 2**31], (3, 4, 4), 10, device=d) for d in ("cpu", device))
    for one, other in zip(here[:2], there[:2], strict=True):
        assert other.device.type == device.type
        assert torch.equal(one, other.cpu())
    for _ in range(34):  # more than are drawn at once
        assert torch.equal(here[2](), there[2]().cpu())
    assert torch.equal(here[2].other("a")(), there[2].other("a")().cpu())


def test_no_method_is_forgotten():
    assert set(METHODS) | OF_IMAGES == set(guidance.__all__)


@pytest.mark.parametrize("section", [*({"name": n, **k} for n, k in METHODS.items()), SCHEDULED],
                         ids=[*METHODS, "schedule"])  # fmt: skip
def test_a_method_is_that_of_the_cpu(section, device):
    sampler = {**EULER, "name": "ddpm"} if section["name"] == "feynman_kac" else EULER
    assert_within(1e-3, samples(section, sampler, device), samples(section, sampler, "cpu"))


def test_the_low_frequencies_of_images_are_those_of_the_cpu(device):
    d = torch.randn(3, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    assert_within(1e-5, low_frequencies(d.to(device)).cpu(), low_frequencies(d))


@pytest.mark.parametrize("name", samplers.__all__)
@pytest.mark.parametrize("kind", [EDM, DDPM, Flow], ids=lambda kind: kind.__name__)
def test_a_sampler_is_that_of_the_cpu(name, kind, device):
    """dopri5 within its tolerance, the others within what rounding grows to in a few steps."""
    section = {"name": name, "sigma_min": 0.02, "sigma_max": 80.0}
    section |= {"points": 3} if name == "dopri5" else {"steps": 6}
    model, paths = of_points(kind, 0, label_dropout=0.1), []
    for place in ("cpu", device):
        net = copy.deepcopy(model).to(place)
        noise, c, draw = seeded(list(range(12)), (2,), 2, device=place)
        with torch.no_grad(), matmul("highest"):
            path = [x.cpu() for _, x in sample(section, classifier_free(net), noise, c, draw)]
        paths.append(torch.stack(path))
    assert_within(1e-3, paths[1], paths[0])


def test_the_exact_fractal_is_that_of_the_cpu_in_float64(device):
    """Nothing between noise and sample is float32, dopri5's times included."""
    ends, spent = [], []
    for place in ("cpu", device):
        net = Counted(fractal(3).to(place))
        noise, c, draw = seeded(list(range(12)), (2,), 2, device=place)
        denoise = classifier_free(net, scale=2.0)
        for section in (EULER, {"name": "dopri5", "sigma_min": 0.02, "sigma_max": 80.0}):
            *_, (_, x) = sample(section, denoise, noise, c, draw)
            assert x.dtype == torch.float64
            ends.append(x.cpu())
        spent.append(net.evaluations)
    assert_within(1e-9, ends[2], ends[0])
    assert_within(1e-5, ends[3], ends[1])
    assert spent[0] == spent[1]


@pytest.mark.parametrize("method", ["dopri5", "heun"])
def test_a_refinement_is_that_of_the_cpu(method, device):
    model, solver = of_points(Flow, 4), Solver(method=method)
    noise, c, _ = seeded(list(range(12)), (2,), 2)
    here, spent = refined(model, noise.float(), c, solver)
    there, also = refined(copy.deepcopy(model).to(device), noise.float(), c, solver)
    assert there.device.type == "cpu"
    assert_within(FLOAT32, there, here)
    assert abs(spent - also) <= 12 * 12  # dopri5: two steps of all samples


@pytest.mark.parametrize("n", [2, 64])
def test_one_batch_of_both_passes_is_two(n, device, monkeypatch):
    """Products of another shape go by other kernels, in float32 all the same."""
    found = []
    for together in (0, 10**6):
        monkeypatch.setattr(scales, "TOGETHER", together)
        found.append(samples(CFG, EULER, device, n))
    assert_within(FLOAT32, found[1], found[0])


@pytest.mark.parametrize("of_images", [False, True], ids=["MLP", "ADMEncoder"])
def test_a_compiled_classifiers_gradients(of_images, device):
    """With respect to the sample, of a network whose parameters are frozen."""
    shape = (1, 8, 8) if of_images else (2,)
    classifier = of_points(NoisyClassifier, 2)
    if of_images:
        torch.manual_seed(0)
        net = ADMEncoder(shape, 2, channels=64, channel_mult=(1, 2), blocks=1,
                         attention_resolutions=(2,), dropout=0.0)  # fmt: skip
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        classifier = NoisyClassifier(net).eval().requires_grad_(False)
    ours = copy.deepcopy(classifier).to(device)
    ours.net.compile()

    def nothing(x: torch.Tensor, sigma: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    for n in (8, 5):
        x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(n)).double()
        sigma, c = torch.linspace(0.1, 5, n).double(), torch.arange(n) % 2
        slopes = []
        for net, place in ((classifier, "cpu"), (ours, device)):
            guided = classifier_gradient(nothing, net, scale=2.0)
            with torch.no_grad(), matmul("highest"):
                slopes.append(guided(x.to(place), sigma.to(place), c.to(place)))
        assert slopes[0].norm() > 0
        assert_within(2 * FLOAT32, slopes[1], slopes[0])


def test_trajectories_are_measured_as_on_the_cpu(device):
    classifier, measured = of_points(NoisyClassifier, 2), []
    sigma = torch.tensor([80.0, 10.0, 1.0, 0.1, 0.0], dtype=torch.float64)
    path = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0))
    path = path * (1 + sigma.float() ** 2).sqrt()[:, None]
    for place in ("cpu", device):
        x, s = path.to(place), sigma.to(place)
        with matmul("highest"):
            seen = along(copy.deepcopy(classifier).to(place), x, s, 0)
        numbers = [straightness(x, s), closest(seen.distance, s), over_time(seen.distance, s)]
        measured.append(torch.stack(numbers))
    assert_within(1e-3, measured[1], measured[0])
