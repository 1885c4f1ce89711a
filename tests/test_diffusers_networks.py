"""Networks of diffusers under our samplers against their own pipelines: final latents, 10 steps."""

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from helpers import pipelines  # noqa: E402

from lightning_cfg.diffusers.conditions import Table  # noqa: E402
from lightning_cfg.diffusers.model import Sized  # noqa: E402
from lightning_cfg.diffusers.model import diffusers as ours  # noqa: E402
from lightning_cfg.errors import UserError  # noqa: E402
from lightning_cfg.interfaces import Known  # noqa: E402
from lightning_cfg.sampling.guided import guide  # noqa: E402
from lightning_cfg.sampling.levels import ends_above, of_pipeline  # noqa: E402
from lightning_cfg.sampling.sample import sample  # noqa: E402

STEPS, SEEDS = 10, [0, 1, 2]
C = torch.tensor([0, 2, 1])
TABLES = pipelines.prompts()
NULL = [len(TABLES["prompt"]) - 1] * 3
PROMPTS = {"prompt_embeds": TABLES["prompt"][C], "negative_prompt_embeds": TABLES["prompt"][NULL]}
POOLED = {
    "pooled_prompt_embeds": TABLES["pooled"][C],
    "negative_pooled_prompt_embeds": TABLES["pooled"][NULL],
}


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def noise(*shape: int) -> Tensor:
    return torch.stack([torch.randn(shape, generator=g) for g in generators()])


def loaded(pipe, folder, table: dict | None = None, **keys: object) -> ours:
    """The pipeline's network from its own folder."""
    pipe.save_pretrained(folder)
    model = ours(path=str(folder), **keys)
    if table is not None:
        model.conditions = Table(table)
    return model


def sampled(model, n: Tensor, c: Tensor, scale: float) -> Tensor:
    """By our Euler along the pipeline's own levels."""
    section, along = of_pipeline({"name": "euler", "steps": STEPS, "levels": "model"}, Known(model))
    guided = guide({"name": "classifier_free", "scale": scale}, {"model": Known(model).net})
    *_, (_, x) = sample(section, ends_above(guided, along), n.double() * along.start, c, None)
    return x


def far(ours: Tensor, theirs: Tensor) -> float:
    assert theirs.std() > 0.05  # of something
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_dit(tmp_path, scale, monkeypatch):
    """With a learned variance, which is dropped."""
    pipe = pipelines.dit(diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False))
    kept, decode = [], pipe.vae.decode
    monkeypatch.setattr(
        pipe.vae, "decode", lambda z, *a, **k: (kept.append(z), decode(z, *a, **k))[1]
    )
    labels = [3, 77, 999]
    pipe(labels, guidance_scale=scale, generator=generators(), num_inference_steps=STEPS,
         output_type="pt")  # fmt: skip
    model = loaded(pipe, tmp_path)
    assert (model.shape, model.num_classes) == ((4, 8, 8), 1000)
    x = sampled(model, noise(4, 8, 8), torch.tensor(labels), scale)
    assert far(x, kept[0] * pipe.vae.config.scaling_factor) < 1e-6


def sd_latents(pipe, n: Tensor, scale: float) -> Tensor:
    return pipe(**PROMPTS, guidance_scale=scale, num_inference_steps=STEPS, latents=n.clone(),
                output_type="latent").images  # fmt: skip


@pytest.mark.parametrize(
    "kind, zero, limit",
    [("epsilon", False, 1e-6), ("v_prediction", False, 1e-6), ("sample", False, 1e-5),
     ("v_prediction", True, 1e-5), ("sample", True, 1e-5)],
)  # fmt: skip
def test_stable_diffusion_with_ddim(tmp_path, kind, zero, limit):
    """As SD's own config: leading, offset 1, ending at the first level. Zero terminal SNR."""
    scheduler = diffusers.DDIMScheduler(
        **pipelines.SD, prediction_type=kind, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="trailing" if zero else "leading",
        rescale_betas_zero_snr=zero,
    )  # fmt: skip
    pipe, n = pipelines.sd(scheduler), noise(4, 8, 8)
    model = loaded(pipe, tmp_path, {"prompt": TABLES["prompt"]})
    assert far(sampled(model, n, C, 3.0), sd_latents(pipe, n, 3.0)) < limit


EULER = [
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    {"timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "v_prediction"},
    {"timestep_spacing": "leading", "final_sigmas_type": "sigma_min"},
]


@pytest.mark.parametrize("keys", EULER)
def test_stable_diffusion_with_euler(tmp_path, keys):
    """Fractional times they interpolate in sigma, and we in ln sigma."""
    pipe = pipelines.sd(diffusers.EulerDiscreteScheduler(**pipelines.SD, **keys))
    n, model = noise(4, 8, 8), loaded(pipe, tmp_path, {"prompt": TABLES["prompt"]})
    limit = 1e-5 if keys["timestep_spacing"] == "linspace" else 1e-6
    assert far(sampled(model, n, C, 3.0), sd_latents(pipe, n, 3.0)) < limit


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_first_order_steps_of_other_schedulers(tmp_path, scheduler):
    """DPM-Solver++ of order 1 is DDIM."""
    extra = {"solver_order": 1} if scheduler.startswith("DPM") else {"clip_sample": False}
    made = getattr(diffusers, scheduler)(**pipelines.SD, timestep_spacing="trailing", **extra)
    pipe, n = pipelines.sd(made), noise(4, 8, 8)
    model = loaded(pipe, tmp_path, {"prompt": TABLES["prompt"]})
    assert far(sampled(model, n, C, 3.0), sd_latents(pipe, n, 3.0)) < 1e-6


def test_sdxl(tmp_path):
    """Pooled text, and the six sizes."""
    scheduler = diffusers.EulerDiscreteScheduler(
        **pipelines.SD, timestep_spacing="leading", steps_offset=1
    )
    pipe, n = pipelines.sdxl(scheduler), noise(4, 8, 8)
    side = 8 * pipe.vae_scale_factor
    z = pipe(**PROMPTS, **POOLED, guidance_scale=3.0, num_inference_steps=STEPS, latents=n.clone(),
             output_type="latent", height=side, width=side).images  # fmt: skip
    model = loaded(pipe, tmp_path)
    table = Table({"prompt": TABLES["prompt"], "text_embeds": TABLES["pooled"]})
    model.conditions = Sized(table, (side, side))
    assert far(sampled(model, n, C, 3.0), z) < 1e-6
    vectors = model.class_vectors(C)  # of prompts, and not of sizes, which CADS leaves as they are
    assert vectors.shape == (3, pipelines.TOKENS * pipelines.WIDTH + pipelines.POOLED)
    sigma = torch.full((3,), 2.0, dtype=torch.float64)
    assert torch.equal(model(n.double(), sigma, vectors), model(n.double(), sigma, C))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sd3(tmp_path, shift):
    """Its first sigma is infinite, which is taken as 1e8."""
    pipe = pipelines.sd3(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))
    n, side = noise(4, 8, 8), 8 * pipe.vae_scale_factor
    z = pipe(**PROMPTS, **POOLED, guidance_scale=3.0, num_inference_steps=STEPS, latents=n.clone(),
             output_type="latent", height=side, width=side).images  # fmt: skip
    model = loaded(pipe, tmp_path, TABLES)
    assert far(sampled(model, n, C, 3.0), z) < 1e-5


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_flux(tmp_path, scale):
    """Packed latents, guidance as a number that is told, levels shifted by the size, true CFG."""
    pipe = pipelines.flux(diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
    ))  # fmt: skip
    n, side = noise(4, 8, 8), 8 * pipe.vae_scale_factor
    told = {name: value for name, value in (PROMPTS | POOLED).items()
            if scale > 1 or not name.startswith("negative")}  # fmt: skip
    z = pipe(**told, true_cfg_scale=scale, guidance_scale=2.5, num_inference_steps=STEPS,
             latents=pipe._pack_latents(n, 3, 4, 8, 8), output_type="latent", height=side,
             width=side).images  # fmt: skip
    z = pipe._unpack_latents(z, side, side, pipe.vae_scale_factor)
    model = loaded(pipe, tmp_path, TABLES, latents=[8, 8], guidance=2.5)
    assert far(sampled(model, n, C, scale), z) < 1e-6


def test_images_without_classes(tmp_path, monkeypatch):
    """Before the pipeline clips them."""
    pipe = pipelines.pixels(diffusers.DDIMScheduler(clip_sample=False))
    kept, step = [], pipe.scheduler.step
    monkeypatch.setattr(
        pipe.scheduler, "step", lambda *a, **k: (kept.append(step(*a, **k)), kept[-1])[1]
    )
    pipe(3, generator=generators(), num_inference_steps=STEPS)
    model = loaded(pipe, tmp_path)
    assert (model.shape, model.num_classes, model.label_dropout) == ((3, 8, 8), 0, 0)
    x = sampled(model, noise(3, 8, 8), torch.zeros(3, dtype=torch.long), 1.0)
    assert far(x, kept[-1].prev_sample) < 1e-6


def test_a_clipped_denoised_sample_is_refused(tmp_path):
    """DDIM's default: the direction is of what was not clipped."""
    model = loaded(pipelines.pixels(diffusers.DDIMScheduler()), tmp_path)
    with pytest.raises(UserError, match=r"levels=model: DDIMScheduler has clip_sample: true"):
        model.along(STEPS)
