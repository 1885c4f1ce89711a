"""Weakened models, frequencies, tangents and rounds: against equations written a second time."""

import copy
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.runs import manifest
from scipy.ndimage import correlate1d
from test_guidance_methods import FOUR, STEPS, WEAK, noisy, run  # noqa: F401
from test_guidance_recent import MEAN, PRECISION, W, two_gaussians
from test_guidance_verbs import EULER
from test_guidance_verbs import FOUR as FOUR_DATA
from torch.nn import functional as F

from lightning_cfg.diffusion.models import EDM
from lightning_cfg.diffusion.noise import karras
from lightning_cfg.diffusion.samplers import euler
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import read_set
from lightning_cfg.guidance import (
    autoguidance,
    classifier_free,
    frequency_decoupled,
    gibbs,
    self_guidance,
    tangential,
)
from lightning_cfg.guidance.frequency_decoupled import low_frequencies
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets import MLP, ADMUNet, UnshuffleUNet
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.prepared import Counted
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.sampling.weakened import drop, identity_attention, skip
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

F64 = torch.float64

# Neutral values


@pytest.mark.parametrize(
    "method",
    [
        partial(self_guidance, weak=WEAK, scale=1.0),
        partial(tangential, scale=1.0),
        partial(frequency_decoupled, scale=1.0),
        partial(gibbs, scale=1.0),
        partial(gibbs, scale=2.0, rounds=0),
    ],
)
def test_the_neutral_value_is_the_conditional_model_without_another_pass(method):
    model = Counted(FOUR)
    assert torch.equal(run(method(model)), run(FOUR))
    assert model.evaluations == 8 * STEPS


@pytest.mark.parametrize("method", [partial(self_guidance, weak=WEAK), tangential, gibbs])
def test_a_batch_of_mixed_scales_equals_the_separate_runs(method):
    scales = torch.tensor([1.0, 2.0, 1.0, 3.5, 1.25, 1.0, 3.5, 2.0], dtype=F64)
    mixed = run(method(FOUR, scale=scales))
    for scale in scales.unique():
        own = scales == scale
        whole = run(method(FOUR, scale=scale.item()))
        if scale > 1 or method is not gibbs:  # a round at scale 1 is a round too
            torch.testing.assert_close(mixed[own], whole[own], rtol=0, atol=1e-11)


# By the model itself


def test_self_guidance_adds_to_another_method(noisy):  # noqa: F811
    x, sigma, c = noisy
    model, weak = Counted(FOUR), Counted(WEAK)
    guided = self_guidance(model, weak, of=partial(classifier_free, scale=3.0), scale=1.4)
    D_u = FOUR(x, sigma, torch.full_like(c, NULL))
    D, D_weak = FOUR(x, sigma, c), WEAK(x, sigma, c)
    expected = D_u + 3 * (D - D_u) + 0.4 * (D - D_weak)
    torch.testing.assert_close(guided(x, sigma, c), expected)
    assert (model.evaluations, weak.evaluations) == (80, 40)
    alone = self_guidance(FOUR, WEAK, scale=1.4)(x, sigma, c)
    torch.testing.assert_close(alone, autoguidance(FOUR, WEAK, scale=1.4)(x, sigma, c))


def network(seed=0) -> EDM:
    torch.manual_seed(seed)
    model = EDM(MLP((2,), 4, width=16, blocks=4)).eval().requires_grad_(False)
    torch.nn.init.normal_(model.net.leave.weight)
    model.shape = (2,)
    return model


X, C = torch.randn(6, 2, generator=torch.Generator().manual_seed(5)), torch.arange(6) % 4


def at(model, level, rows=slice(None)):
    return model(X[rows], torch.full((6,), level)[rows], C[rows])


def without(model, *blocks):
    """The same network with blocks taken out of it."""
    kept = [block for i, block in enumerate(model.net.blocks) if i not in blocks]
    model.net.blocks = torch.nn.ModuleList(kept)
    return model


def test_skipped_blocks_are_as_if_they_were_not_there():
    model = network()
    skip(model, blocks=[1, 3])
    assert torch.equal(at(model, 0.7), at(without(network(), 1, 3), 0.7))
    assert not torch.equal(at(model, 0.7), at(network(), 0.7))
    with pytest.raises(UserError, match=r"blocks=\[4\]: the network has 4 blocks"):
        skip(network(), blocks=[4])
    with pytest.raises(UserError, match=r"number=5: the network has 4 blocks"):
        skip(network(), number=5)


def test_only_blocks_that_keep_their_shape_are_skipped():
    """Of a UNet on its way down and up channels change: what can be skipped is tried first."""
    torch.manual_seed(0)
    model = EDM(UnshuffleUNet((1, 8, 8), 3, channels=8, channel_mult=[1, 2], blocks=2)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.shape = (1, 8, 8)
    x, sigma, c = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    answers = [model(x, sigma, c)]
    for i in range(20):
        other = copy.deepcopy(model)
        try:
            skip(other, blocks=[i])
        except UserError:
            break
        answers.append(other(x, sigma, c))
    assert len(answers) > 3
    for one, another in pairwise(answers):
        assert (one - another).abs().max() > 1e-4


def test_random_blocks_follow_from_seed_and_noise_level_alone():
    model, found = network(), set()
    skip(model, number=2, seed=1)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    alone = {pair: network() for pair in pairs}
    for pair, other in alone.items():
        without(other, *pair)
    for level in (0.1, 0.3, 1.0, 3.0, 9.0, 20.0):
        whole = at(model, level)
        assert torch.equal(at(model, level), whole)
        torch.testing.assert_close(at(model, level, slice(2, 3)), whole[2:3])
        same = [pair for pair, other in alone.items() if torch.equal(at(other, level), whole)]
        assert len(same) == 1
        found |= set(same)
    assert len(found) > 2
    other = network()
    skip(other, number=2, seed=2)
    assert any(not torch.equal(at(other, s), at(model, s)) for s in (0.1, 0.3, 1.0))


def test_dropped_numbers_are_a_share_of_what_blocks_add():
    seen = []
    model = network()
    drop(model, rate=0.3)
    for block in model.net.blocks:
        block.register_forward_hook(lambda m, args, out: seen.append((m, args, out)))
    for level in torch.logspace(-2, 2, 40).tolist():
        at(model, level)
    ratios = []
    for block, args, out in seen:
        hooks, block._forward_hooks = block._forward_hooks, {}
        added = block(*args) - args[0]
        block._forward_hooks = hooks
        ratio = (out - args[0]) / added
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-2, atol=1e-2)
        ratios.append(ratio[0])
    ratios = torch.stack(ratios)
    zero = ratios.abs() < 1e-2
    assert zero.double().mean() == pytest.approx(0.3, abs=0.04)
    torch.testing.assert_close(ratios[~zero].mean(), torch.tensor(1 / 0.7), rtol=1e-2, atol=0)
    assert 0 < zero.double().mean(0).min()  # none is always kept


def test_attention_to_itself_alone_gives_the_values():
    torch.manual_seed(0)
    shape = (1, 8, 8)
    net = ADMUNet(shape, 3, channels=32, channel_mult=(1,), blocks=1, attention_resolutions=(1,))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model, usual = EDM(net).eval().requires_grad_(False), F.scaled_dot_product_attention
    x, sigma, c = torch.randn(2, *shape), torch.tensor([0.5, 0.5]), torch.tensor([0, 1])
    plain = model(x, sigma, c)
    try:
        F.scaled_dot_product_attention = lambda q, k, v: torch.eye(v.shape[-2]) @ v
        expected = model(x, sigma, c)
    finally:
        F.scaled_dot_product_attention = usual
    identity_attention(model)
    torch.testing.assert_close(model(x, sigma, c), expected)
    assert (expected - plain).abs().max() > 1e-3
    assert F.scaled_dot_product_attention is usual  # and others' attention is as it was
    none = network()
    identity_attention(none)
    with pytest.raises(UserError, match="the network has no attention"):
        at(none, 1.0)
    assert F.scaled_dot_product_attention is usual


def test_a_run_is_its_own_weak_model(tmp_path, training):
    base = str(fit(**training(data=FOUR_DATA), run_dir=str(tmp_path / "base")))
    made = {"guidance": {"name": "self_guidance", "scale": 3.0}, "sampler": EULER, "n": 8}
    runs = {}
    for name, weak in {
        "plain": base,
        "skip": {"path": base, "weaken": {"name": "skip"}},
        "drop": {"path": base, "weaken": {"name": "drop", "rate": 0.5}},
    }.items():
        models = {"model": base, "weak": weak}
        runs[name] = generate(models=models, run_dir=str(tmp_path / name), **made)
    x = {
        name: load_tensors(r / "samples/samples.safetensors", "x")["x"] for name, r in runs.items()
    }
    for name in ("skip", "drop"):
        assert (x[name] - x["plain"]).abs().max() > 1e-4
    told = manifest(runs["skip"])
    assert told["evaluations"] == {"model": 5, "weak": 5}
    assert told["settings"]["models"]["weak"]["weaken"]["name"] == "skip"
    assert "weak weakened by skip number=1" in read_set(runs["skip"]).about["model_weights"]
    changed = {"model": base, "weak": {"path": base, "weaken": {"name": "skip", "seed": 1}}}
    with pytest.raises(UserError, match=r"weaken\.seed: 0 there, 1 here"):
        generate(models=changed, run_dir=str(runs["skip"]), **made)
    exact = {"model": "exact", "weak": {"path": "exact", "weaken": {"name": "skip"}}}
    with pytest.raises(UserError, match=r"models\.weak\.weaken: exact is no network"):
        generate(models=exact, data=FOUR_DATA, run_dir=str(tmp_path / "x"), **made)


# Frequencies


def by_scipy(d):
    """Blurred by [1, 4, 6, 4, 1] / 16, means of 2 x 2, bilinear doubling, and blurred again."""
    taps = np.array([1, 4, 6, 4, 1]) / 16

    def blurred(a):
        return correlate1d(correlate1d(a, taps, axis=0, mode="mirror"), taps, axis=1, mode="mirror")

    def doubled(a):
        for axis in (0, 1):
            n = a.shape[axis]
            places = (np.arange(2 * n) + 0.5) / 2 - 0.5
            along = partial(np.interp, places, np.arange(n))
            a = np.apply_along_axis(along, axis, a)
        return a

    small = blurred(d)
    small = (small[::2, ::2] + small[1::2, ::2] + small[::2, 1::2] + small[1::2, 1::2]) / 4
    return blurred(doubled(small))


def images(x, sigma, c):
    """D_c and D_u, which differ by x."""
    return x * (2 + c[:, None, None, None])


def test_frequencies_are_guided_apart():
    x = torch.randn(3, 2, 8, 12, dtype=F64, generator=torch.Generator().manual_seed(0))
    low = np.stack([[by_scipy(channel) for channel in image] for image in x.numpy()])
    torch.testing.assert_close(low_frequencies(x), torch.tensor(low))
    c, sigma = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=F64)
    found = frequency_decoupled(images, scale=4.0, low=0.5)(x, sigma, c)
    expected = 2 * x + 1.5 * torch.tensor(low) + 3 * (x - torch.tensor(low))
    torch.testing.assert_close(found, expected)  # w_low = 1 + 0.5 (4 - 1)
    cfg = frequency_decoupled(images, scale=4.0, low=1.0)(x, sigma, c)
    torch.testing.assert_close(cfg, classifier_free(images, scale=4.0)(x, sigma, c))
    flat = torch.ones(1, 1, 7, 9, dtype=F64)  # odd sizes too: a colour is low frequency alone
    torch.testing.assert_close(low_frequencies(flat), flat)
    scales = torch.tensor([1.0, 4.0, 1.0], dtype=F64)
    mixed = frequency_decoupled(images, scale=scales, low=0.5)(x, sigma, c)
    assert torch.equal(mixed[::2], 2 * x[::2])
    torch.testing.assert_close(mixed[1], expected[1])
    with pytest.raises(UserError, match="frequency_decoupled is for images"):
        run(frequency_decoupled(FOUR, scale=2.0))


# Tangents


def test_tangential_keeps_what_both_scores_share(noisy):  # noqa: F811
    x, sigma, c = noisy
    found = tangential(FOUR, scale=2.5)(x, sigma, c)
    D_c, D_u = FOUR(x, sigma, c), FOUR(x, sigma, torch.full_like(c, NULL))
    for i in range(40):
        e_c, e_u = (((x[i] - D[i]) / sigma[i]).numpy() for D in (D_c, D_u))
        scatter = np.outer(e_c, e_c) + np.outer(e_u, e_u)
        v = np.linalg.eigh(scatter)[1][:, -1]
        e_u = (e_u @ v) * v
        expected = x[i].numpy() - sigma[i].item() * (e_u + 2.5 * (e_c - e_u))
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-6, atol=1e-9)
    assert (found - classifier_free(FOUR, scale=2.5)(x, sigma, c)).abs().max() > 0.01


# Rounds


def test_gibbs_is_its_loop():
    noise, c, draw = seeded(list(range(6)), (2,), 4)
    model = Counted(FOUR)
    section = {"name": "euler", "steps": 10, "sigma_max": 30.0, "sigma_min": 0.01}
    guided = gibbs(model, scale=2.5, rounds=2, sigma=1.5, steps=4)
    path = list(sample(section, guided, noise, c, draw))
    x = list(euler(FOUR, noise, c, steps=10, sigma_max=30.0, sigma_min=0.01))[-1][1]
    _, _, draw = seeded(list(range(6)), (2,), 4)
    for r in (1, 2):
        x = x + 1.5 * draw.other(f"restart {r}")()
        start = x
        for s, t in pairwise(karras(4, 0.01, 1.5).tolist()):
            D = classifier_free(FOUR, scale=2.5)(x, torch.full((6,), s, dtype=F64), c)
            x = x + (t - s) * (x - D) / s
    torch.testing.assert_close(path[-1][1], x)
    torch.testing.assert_close(path[0][1], start)
    assert [s for s, _ in path] == pytest.approx(karras(4, 0.01, 1.5).tolist())
    assert model.evaluations == 6 * (10 + 2 * 2 * 4)
    for size in (1, 4):
        parts = [range(i, min(i + size, 6)) for i in range(0, 6, size)]
        rows = [run(gibbs(FOUR, scale=2.5), "heun", seeds) for seeds in parts]
        torch.testing.assert_close(
            torch.cat(rows), run(gibbs(FOUR, scale=2.5), "heun", range(6)), rtol=0, atol=1e-10
        )


def test_rounds_at_low_noise_come_nearer_to_the_tilted_density_than_cfg():
    """Of two Gaussians, whose tilted density is one: mean and deviation, in units of its own."""
    model, n, far = two_gaussians(0.5, 0.6, 1.0), 1500, {}
    section = {"name": "heun", "steps": 24, "sigma_max": 30.0}
    for name, guided in (
        ("cfg", classifier_free(model, scale=W)),
        ("gibbs", gibbs(model, scale=W, rounds=25, sigma=0.3, steps=8)),
    ):
        noise, c, draw = seeded(list(range(n)), (1,), 1)
        *_, (_, x) = sample(section, guided, noise, c, draw)
        z = (x - MEAN) * PRECISION**0.5
        far[name] = abs(z.mean().item()), abs(z.std().item() - 1)
    assert far["gibbs"][0] < 0.5 * far["cfg"][0]
    assert far["gibbs"][1] < 0.5 * far["cfg"][1]


@pytest.mark.parametrize("sampler", [{"name": "dopri5"}, {"name": "euler", "levels": [9.0, 1.0]}])
def test_rounds_need_a_schedule(sampler):
    noise, c, draw = seeded([0], (2,), 4)
    with pytest.raises(UserError, match="cannot begin again at another noise level"):
        list(sample(sampler, gibbs(FOUR), noise, c, draw))
