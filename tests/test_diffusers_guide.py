"""Our guidance in diffusers' pipelines: against their own CFG, and against our own Euler."""

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from helpers import pipelines  # noqa: E402

from lightning_cfg.diffusers import guide  # noqa: E402
from lightning_cfg.diffusers.calls import call_of  # noqa: E402
from lightning_cfg.diffusers.conditions import Table  # noqa: E402
from lightning_cfg.diffusers.model import DiffusersModel  # noqa: E402
from lightning_cfg.diffusers.predictions import prediction_of  # noqa: E402
from lightning_cfg.errors import UserError  # noqa: E402
from lightning_cfg.sampling.guided import guide as guided_by  # noqa: E402
from lightning_cfg.sampling.sample import sample  # noqa: E402

STEPS = 10
TABLES = pipelines.prompts()
K = pipelines.K
C = torch.tensor([0, 2, 4])
CFG = {"name": "classifier_free", "scale": 3.0}
NULL = {"prompt": TABLES["prompt"][-1:]}
HEAD = torch.randn(4 * 64, K, generator=torch.Generator().manual_seed(1))


def noise(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def run(pipe, scale: float, **extra: object) -> Tensor:
    given = {"negative_prompt_embeds": TABLES["prompt"][[K] * 3]} if scale > 1 else {}
    given |= {"latents": noise(), "output_type": "latent", "num_inference_steps": STEPS}
    return pipe(prompt_embeds=TABLES["prompt"][C], guidance_scale=scale, **given, **extra).images


def far(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def scheduler(name: str, kind: str = "epsilon", **extra: object):
    keys = {**pipelines.SD, "prediction_type": kind, "timestep_spacing": "trailing"}
    return getattr(diffusers, name)(**keys, **extra)


SCHEDULERS = [
    ("DDIMScheduler", {"clip_sample": False}),
    ("EulerDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("HeunDiscreteScheduler", {}),
]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name, extra", SCHEDULERS)
def test_their_schedulers_under_our_cfg(name, extra, kind):
    own = run(pipelines.sd(scheduler(name, kind, **extra)), 3.0)
    pipe = pipelines.sd(scheduler(name, kind, **extra))
    module = guide(pipe, CFG, null=NULL)
    assert far(run(pipe, 1.0), own) < 1e-6
    module.restore()
    assert torch.equal(run(pipe, 3.0), own)


def classifier(x: Tensor, sigma: Tensor) -> Tensor:
    return 3 * (x.flatten(1).to(HEAD) @ HEAD) / 16


METHODS = {
    "gfcg": {"name": "gfcg", "scale": 3.0},
    "additive": {"name": "gfcg", "scale": 3.0, "combine": "additive"},
    "gfcg_autoguidance": {"name": "gfcg_autoguidance", "scale": 2.0},
    "autoguidance": {"name": "autoguidance", "scale": 2.0},
    "apg": {"name": "apg", "scale": 3.0, "norm": 5.0, "momentum": -0.5},
    "interval": {"name": "interval", "of": CFG, "sigma_low": 0.3, "sigma_high": 5.0},
    "feedback": {"name": "feedback"},
    "momentum": {"name": "momentum", "of": CFG},
}
ROLES = {"gfcg": ["classifier"], "additive": ["classifier"], "autoguidance": ["weak"],
         "gfcg_autoguidance": ["weak", "classifier"]}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_our_methods_in_their_pipeline(name, monkeypatch):
    """Against our own Euler along the same levels, with a table of all prompts."""
    made, weak = scheduler("EulerDiscreteScheduler"), pipelines.unet(4, 9)
    pipe, known = pipelines.sd(made), {"weak": weak, "classifier": classifier}
    asked = {role: known[role] for role in ROLES.get(name, [])}
    prompts = [f"prompt {k}" for k in range(K)] if "classifier" in asked else None
    if prompts:  # as the pipeline's text encoder would
        monkeypatch.setattr(
            "lightning_cfg.diffusers.in_pipeline.encoded", lambda *_: {"prompt": TABLES["prompt"]}
        )
    guide(pipe, METHODS[name], prompts=prompts, null=NULL, **asked)
    theirs = run(pipe, 1.0)

    table, prediction = Table({"prompt": TABLES["prompt"]}), prediction_of(made)
    nets = {"model": pipe.unet.net, "weak": weak}
    ours = {role: DiffusersModel(net, prediction, call_of(net), table, (4, 8, 8))
            for role, net in nets.items()}  # fmt: skip
    guided = guided_by(METHODS[name], {**ours, "classifier": classifier})
    made.set_timesteps(STEPS)
    section = {"name": "euler", "levels": made.sigmas.tolist()[:-1]}
    *_, (_, x) = sample(section, guided, noise().double(), C, None)
    assert far(theirs, x) < 1e-6
    assert far(theirs, run(pipelines.sd(scheduler("EulerDiscreteScheduler")), 1.0)) > 1e-3


def test_another_trajectory_begins_anew():
    """What a method remembers along a trajectory is not that of the one before."""
    pipe = pipelines.sd(scheduler("EulerDiscreteScheduler"))
    guide(pipe, METHODS["apg"], null=NULL)
    first, again = run(pipe, 1.0), run(pipe, 1.0)
    assert torch.equal(first, again)


def test_dit():
    """Classes by number; null is class 1000; the variance that comes with the answer is dropped."""

    def made():
        return pipelines.dit(diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False))

    def picture(pipe, scale):
        g = [torch.Generator().manual_seed(seed) for seed in range(2)]
        return torch.from_numpy(
            pipe([3, 77], guidance_scale=scale, generator=g, num_inference_steps=4,
                 output_type="np").images
        )  # fmt: skip

    own, pipe = picture(made(), 3.0), made()
    guide(pipe, CFG)
    assert far(picture(pipe, 1.0), own) < 1e-5  # as pictures of 8 x 8 latents


NEGATIVE = {
    "negative_prompt_embeds": TABLES["prompt"][[K] * 3],
    "negative_pooled_prompt_embeds": TABLES["pooled"][[K] * 3],
}


def asked(side: int) -> dict:
    own = {"prompt_embeds": TABLES["prompt"][C], "pooled_prompt_embeds": TABLES["pooled"][C]}
    return {**own, "num_inference_steps": 4, "output_type": "latent", "height": side, "width": side}


def test_sdxl_and_its_sizes():
    def made():
        return pipelines.sdxl(scheduler("EulerDiscreteScheduler"))

    def latents(pipe, scale):
        side = 8 * pipe.vae_scale_factor
        null = dict(NEGATIVE) if scale > 1 else {}
        null |= {"guidance_scale": scale}
        return pipe(**null, **asked(side), latents=noise()).images

    pipe = made()
    guide(pipe, CFG, null=NULL | {"text_embeds": TABLES["pooled"][-1:]})
    assert far(latents(pipe, 1.0), latents(made(), 3.0)) < 1e-6


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flows(name):
    """Infinite noise at the start, time in thousandths; packed latents, and a number of its own."""
    shift = {"use_dynamic_shifting": True} if name == "flux" else {"shift": 3.0}

    def made():
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**shift)
        return getattr(pipelines, name)(scheduler)

    def latents(pipe, scale):
        side = 8 * pipe.vae_scale_factor
        null = dict(NEGATIVE) if scale > 1 else {}
        flux = name == "flux"
        n = pipe._pack_latents(noise(), 3, 4, 8, 8) if flux else noise()
        scales = (
            {"true_cfg_scale": scale, "guidance_scale": 2.5} if flux else {"guidance_scale": scale}
        )
        return pipe(prompt_embeds=TABLES["prompt"][C], pooled_prompt_embeds=TABLES["pooled"][C],
                    num_inference_steps=4, latents=n, height=side, width=side, output_type="latent",
                    **scales, **(null if scale > 1 else {})).images  # fmt: skip

    pipe = made()
    guide(pipe, CFG, null={name: rows[-1:] for name, rows in TABLES.items()})
    assert far(latents(pipe, 1.0), latents(made(), 3.0)) < 1e-5


@pytest.mark.parametrize(
    "guidance, message",
    [
        ({"name": "cads", "of": CFG}, "asks its sampler for draw_from"),
        ({"name": "cfg_plus_plus"}, "asks its sampler for keep_noise"),
        ({"name": "feynman_kac"}, "only ours give"),
        ({"name": "classifier_fre"}, "did you mean"),
        ({"name": "gfcg"}, r"needs models\.classifier"),
    ],
)
def test_methods_that_their_schedulers_cannot_serve(guidance, message):
    pipe = pipelines.sd(scheduler("EulerDiscreteScheduler"))
    net = pipe.unet
    with pytest.raises(UserError, match=message):
        guide(pipe, guidance, null=NULL)
    assert pipe.unet is net


def test_calls_that_are_not_understood(monkeypatch):
    pipe = pipelines.sd(scheduler("EulerDiscreteScheduler"))
    with pytest.raises(UserError, match="no text encoder: null="):
        guide(pipe, CFG)
    guide(pipe, CFG, null=NULL)
    with pytest.raises(UserError, match="cross_attention_kwargs of the pipeline's call"):
        run(pipe, 1.0, cross_attention_kwargs={"temperature": 0.5})
    pipe.unet.restore()
    monkeypatch.setattr(
        "lightning_cfg.diffusers.in_pipeline.encoded",
        lambda *_: {"prompt": TABLES["prompt"][[0, 1, -1]]},
    )
    guide(pipe, METHODS["gfcg"], prompts=["a", "b"], null=NULL, classifier=classifier)
    with pytest.raises(UserError, match="called with another one"):
        run(pipe, 1.0)
