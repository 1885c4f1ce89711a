"""A sampler's `levels: model`: the steps, the start and the end of the model's own pipeline."""

from dataclasses import replace

from torch import Tensor

from lightning_cfg.diffusion.noise import steps_of
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Along, Denoiser, Known, as_guided

EULER = ("euler", "ddim")  # of which only the last step is at the last level, so it may end above 0


def of_pipeline(sampler: dict, model: Known) -> tuple[dict, Along]:
    """The section with the model's own levels in the place of the word; others stay as they are.

    UserError for a model without levels of its own, and where they end above 0 and the sampler is
    another one than euler or ddim, or limits stand beside them.
    """
    levels = sampler.get("levels")
    if levels not in ("model", {"name": "model"}):
        return sampler, Along([])
    if model.along is None:
        raise UserError("sampler.levels=model: models.model has no levels of its own; name others")
    for key in ("sigma_min", "sigma_max"):
        if sampler.get(key) is not None:
            raise UserError(f"sampler.{key} does not count beside levels=model")
    along = model.along(steps_of(sampler))
    if along.end > 0 and (sampler["name"] not in EULER or sampler.get("eta")):
        raise UserError(
            f"sampler.levels=model: the model's scheduler ends at sigma={along.end:.4g}, which of "
            f"our samplers {' and '.join(EULER)} can"
        )
    kept = {key: value for key, value in sampler.items() if key != "steps"}  # a list says it itself
    return {**kept, "levels": along.levels}, along


def ends_above(denoise: Denoiser, along: Along) -> Denoiser:
    """A denoiser whose step to 0 from the last level ends where the pipeline's last step does.

    That is scale (D + (end / sigma) (x - D)): what Euler's step from sigma to `end` gives, times
    the pipeline's scale there.
    """
    if along.end == 0:
        return denoise
    guided, last = as_guided(denoise), along.levels[-1]

    def ended(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        D = guided.denoise(x, sigma, c)
        if sigma[0].item() != last:
            return D
        return along.scale * (D + along.end / last * (x - D))

    return replace(guided, denoise=ended)
