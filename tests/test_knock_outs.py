"""Knock-outs of the strength that a sample has of its own, each against its formula."""

from functools import partial

import pytest
import torch
from test_guidance_methods import FOUR, noisy, run  # noqa: F401

from lightning_cfg.config import checked
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import classifier_free, feedback, gfcg, gfcg_autoguidance
from lightning_cfg.guidance.knock_outs import knocked_out
from lightning_cfg.interfaces import NULL
from lightning_cfg.runs.run import identity
from lightning_cfg.sampling.prepared import ExactClassifier
from lightning_cfg.verbs.generate import generate

F64 = torch.float64
GFCG = partial(gfcg, FOUR, ExactClassifier(FOUR), classifier_input="noisy", tau=0.0)
STRENGTHS = {  # what each makes of u
    "own": lambda u: u,
    "permuted": lambda u: torch.cat([u[-1:], u[:-1]]),
    "level_mean": lambda u: torch.full_like(u, sum(u.tolist()) / len(u)),
    0.3: lambda u: torch.full_like(u, 0.3),
    0.0: torch.zeros_like,
}


def test_what_stands_in_the_place_of_u():
    u = torch.tensor([0.1, 0.2, 0.6], dtype=F64)
    assert knocked_out(u, "own") is u
    assert knocked_out(u, "permuted").tolist() == [0.6, 0.1, 0.2]
    torch.testing.assert_close(knocked_out(u, "level_mean"), torch.full_like(u, 0.3))
    assert knocked_out(u, 0.25).tolist() == [0.25] * 3
    for strength in ("permuted", "level_mean"):
        with pytest.raises(UserError, match="needs other samples in a batch of one"):
            knocked_out(u[:1], strength)


@pytest.mark.parametrize("reference", ["most_confused", "unconditional"])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_gfcg_without_its_strength_or_its_reference_by_formula(noisy, strength, reference):  # noqa: F811
    x, sigma, c = noisy
    p = FOUR.logits(x, sigma).softmax(1)
    own, others = p.gather(1, c[:, None])[:, 0], p.scatter(1, c[:, None], 0.0)
    most, r = others.max(1)
    u = STRENGTHS[strength](most / (most + own))
    D = FOUR(x, sigma, c)
    D_r = FOUR(x, sigma, r if reference == "most_confused" else torch.full_like(c, NULL))
    found = GFCG(scale=3.0, strength=strength, reference=reference)(x, sigma, c)
    torch.testing.assert_close(found, D + 2 * u[:, None] * (D - D_r), rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_gfcg_with_autoguidance_without_its_strength_by_formula(noisy, strength):  # noqa: F811
    """Where u is not above tau it is autoguidance, by the weak model's own class."""
    x, sigma, c = noisy
    p = FOUR.logits(x, sigma).softmax(1)
    own, others = p.gather(1, c[:, None])[:, 0], p.scatter(1, c[:, None], 0.0)
    most, r = others.max(1)
    u = STRENGTHS[strength](most / (most + own))

    def weak(x: torch.Tensor, sigma: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return FOUR(x, 2 * sigma, c)

    guided = gfcg_autoguidance(
        FOUR, weak, ExactClassifier(FOUR), classifier_input="noisy", tau=0.05, scale=3.0,
        atg_scale=1.5, strength=strength,
    )  # fmt: skip
    w = torch.where(u > 0.05, 1 + 2 * u, 1.5)[:, None]
    D_r = weak(x, sigma, torch.where(u > 0.05, r, c))
    found = guided(x, sigma, c)
    torch.testing.assert_close(found, D_r + w * (FOUR(x, sigma, c) - D_r), rtol=0, atol=1e-10)


def test_with_neither_gfcg_is_cfg(noisy):  # noqa: F811
    x, sigma, c = noisy
    guided = GFCG(scale=2.5, strength=1.0, reference="unconditional")
    torch.testing.assert_close(guided(*noisy), classifier_free(FOUR, scale=2.5)(*noisy))
    one = sigma.new_full(sigma.shape, 0.4)
    u = 1 - FOUR.logits(x, one).softmax(1).gather(1, c[:, None]).mean().item()
    options = {"reference": "unconditional", "confidence": "complement"}
    guided = GFCG(scale=2.5, strength="level_mean", **options)
    schedule = classifier_free(FOUR, scale=1 + 1.5 * u)
    torch.testing.assert_close(guided(x, one, c), schedule(x, one, c))


def test_tau_and_the_mixed_reference_go_by_what_stands_in_the_place_of_u(noisy):  # noqa: F811
    silent = partial(gfcg, FOUR, ExactClassifier(FOUR), tau=0.5, strength=0.4)
    assert torch.equal(silent(scale=3.0)(*noisy), FOUR(*noisy))
    mixed = silent(scale=3.0, combine="mixed", cfg_scale=2.0)
    torch.testing.assert_close(mixed(*noisy), classifier_free(FOUR, scale=2.0)(*noisy))


def weights_of(strength, x, y):
    """w of every sample at the second of two steps, by feedback that is told x, then y."""
    guided = feedback(FOUR, scale=4.0, pi=0.9, t_0=0.5, t_1=0.7, strength=strength)
    guided.take_levels([2.0, 1.0, 0.5, 0.0])
    c, null = torch.arange(8) % 4, torch.full((8,), NULL)
    for i, (sigma, at) in enumerate(((2.0, x), (1.0, y))):
        guided.begin_step(i, sigma)
        level = torch.full((8,), sigma, dtype=F64)
        D_w = guided(at, level, c)
    D_c, D_u = FOUR(y, level, c), FOUR(y, level, null)
    return ((D_w - D_u) * (D_c - D_u)).sum(1) / (D_c - D_u).square().sum(1)


@pytest.mark.parametrize("strength", ["permuted", "level_mean"])
def test_feedback_without_its_strength_by_formula(strength):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 8, 2, generator=g, dtype=F64)
    own = weights_of("own", x, y)
    assert own.std() > 1e-3
    torch.testing.assert_close(weights_of(strength, x, y), STRENGTHS[strength](own))


def test_a_knock_out_is_another_run_and_none_is_the_run_of_before(tmp_path):
    def settings(**guidance):
        asked = {"models": {"model": "exact", "classifier": "exact"}, "run_dir": "", "n": 4}
        asked |= {
            "guidance": {"name": "gfcg", **guidance},
            "sampler": {"name": "euler", "steps": 2},
        }
        asked["data"] = {
            "name": "Mixture",
            "means": [[0.0], [1.0]],
            "labels": [0, 1],
            "stds": [1, 1],
        }
        return identity(generate, checked(generate, asked))[0].settings["guidance"]

    assert settings() == settings(strength="own") != settings(strength="permuted")
    assert "strength" not in settings()


@pytest.mark.parametrize(
    "method, strength, message",
    [
        ("gfcg", "shuffled", "guidance.strength must be"),
        ("gfcg", 1.5, "guidance.strength must be"),
        ("feedback", 0.5, "guidance.strength must be one of 'own', 'permuted', 'level_mean'"),
    ],
)
def test_other_strengths_are_refused_in_a_line(method, strength, message):
    asked = {"models": {"model": "exact"}, "run_dir": "", "n": 4, "sampler": {"name": "euler"}}
    with pytest.raises(UserError, match=message):
        checked(generate, {**asked, "guidance": {"name": method, "strength": strength}})
