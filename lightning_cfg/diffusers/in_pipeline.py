"""Our guidance inside a pipeline of diffusers: a module in the place of its network."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_cfg.diffusers.calls import call_of, flux, is_flux
from lightning_cfg.diffusers.conditions import Classes, Conditions, Table, Told, encoded
from lightning_cfg.diffusers.folder import NETWORKS
from lightning_cfg.diffusers.model import DiffusersModel
from lightning_cfg.diffusers.predictions import prediction_of
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Guided, expand_like
from lightning_cfg.sampling.guided import check_roles
from lightning_cfg.sampling.guided import guide as guided_by

NOT_GIVEN = ("keep_noise", "draw_from", "log_p", "resample")  # asked of samplers; not by theirs
SAME = 1e-3  # relative distance of two encodings of one prompt


def guide(
    pipe: Any,
    guidance: dict | str,
    *,
    prompts: list[str] | None = None,
    null: Told | None = None,
    **networks: Any,
) -> "InPipeline":
    """Put a module that guides by one of our methods in the place of a pipeline's network.

    The pipeline is then called as always, with `guidance_scale=1` (Flux: `true_cfg_scale=1`), and
    every scheduler of diffusers steps with D_w: their x_t is a x, and the module answers with what
    the network would have to predict for its denoised sample to be D_w. `pipe.unet` or
    `pipe.transformer` is then the module; its `restore()` undoes it.

    guidance  a section of ours, {name: gfcg, scale: 2}, or a name
    prompts   rows that a classifier knows as its classes 0, 1, ..., and that may be the reference
              of others; a prompt of the call that is not among them has no class of its own
    null      what "no class" is, {prompt: (1, ...), ...}; left out, the pipeline's empty prompt
    networks  as the method needs them: `weak`, a network of diffusers of the same kind or a
              denoiser D(x, sigma, c); `classifier`, logits(x, sigma) (B, K) of the prompts
    UserError for pipelines and methods that are not known here.
    """
    part = next((name for name in ("unet", "transformer") if getattr(pipe, name, None)), None)
    net = getattr(pipe, part) if part else None
    if type(net).__name__ not in NETWORKS:
        raise UserError(f"{type(pipe).__name__} has no network that is known here")
    section = {"name": guidance} if isinstance(guidance, str) else guidance
    check_roles(section, {"model": net, **networks})
    module = InPipeline(pipe, part, net, section, prompts, null, networks)  # type: ignore[arg-type]
    setattr(pipe, part, module)  # type: ignore[arg-type]
    return module


class InPipeline(nn.Module):
    """Answers in the network's own kind, for the denoised sample of a guidance method."""

    def __init__(
        self,
        pipe: Any,
        part: str,
        net: Any,
        guidance: dict,
        prompts: list[str] | None,
        null: Told | None,
        networks: dict,
    ):
        super().__init__()
        self.net, self._place = net, (pipe, part)  # a tuple: the pipe is no module of this one
        self._classes = _classes(net)
        self._fixed = {} if self._classes else _rows(pipe, prompts, null)
        self._classified = "classifier" in networks
        first = self._classes or Table(_repeated(self._fixed, 2))
        self._models = [self._denoiser(net, first)]
        roles = {role: self._as_denoiser(made, first) for role, made in networks.items()}
        self._guided = guided_by(guidance, {"model": self._models[0], **roles})
        _refuse(self._guided, guidance["name"])
        self._time, self._step = 0.0, -1

    def __getattr__(self, name: str) -> Any:
        """What else a pipeline asks of its network, such as its config and dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def restore(self) -> None:
        """Give the pipeline its own network back."""
        pipe, part = self._place
        setattr(pipe, part, self.net)

    def forward(self, *args: Any, return_dict: bool = True, **given: Any) -> Any:
        """As the network is asked by its pipeline, and in the form of its answers."""
        asked = asked_of(self.net, args, given)
        c = self._tell(asked)
        x_t, prediction = asked.x_t.double(), self._models[0].prediction
        t = torch.as_tensor(asked.t, dtype=torch.float64, device=x_t.device).reshape(-1)
        sigma = prediction.level(t).expand(len(x_t))
        self._begin(t[0].item(), sigma[0].item())
        x = x_t / expand_like(prediction.scale(sigma), x_t)
        D = self._guided(x, sigma, c)
        answer = prediction.answer(x, sigma, D).to(asked.x_t.dtype)
        return answered(self.net, answer, return_dict)

    def _denoiser(self, net: Any, told: Conditions) -> DiffusersModel:
        """A network as a denoiser; its shape is that of the pipeline's call."""
        scheduler = self._place[0].scheduler
        return DiffusersModel(net, prediction_of(scheduler), call_of(net), told, ())

    def _as_denoiser(self, made: Any, told: Conditions) -> Any:
        """Another network of diffusers as a denoiser too; anything else as it is."""
        if type(made).__name__ not in NETWORKS:
            return made
        self._models.append(self._denoiser(made.eval().requires_grad_(False), told))
        return self._models[-1]

    def _tell(self, asked: "Asked") -> Tensor:
        """The classes (B,) of the call's rows, after the networks have been given their table.

        Its rows are the prompts of `guide`, those of the call, and "no class".
        """
        for model in self._models if asked.guidance is not None else ():
            model.call = flux(asked.guidance)
        if self._classes is not None:
            return asked.told["class"]
        K, own = len(next(iter(self._fixed.values()))) - 1, asked.told
        fixed = {name: rows.to(own[name]) for name, rows in self._fixed.items()}
        for name in own:  # such as sizes, which are those of the call
            fixed.setdefault(name, own[name][:1].expand(K + 1, *own[name].shape[1:]))
        table = Table(
            {name: torch.cat([fixed[name][:K], own[name], fixed[name][K:]]) for name in own}
        )
        for model in self._models:
            model.conditions = table
        c = _matched({name: rows[:K] for name, rows in fixed.items()}, own)
        if self._classified and (c < 0).any():
            raise UserError(
                "the classifier knows the prompts of guide(prompts=...), and the pipeline was "
                "called with another one"
            )
        return torch.where(c < 0, K + torch.arange(len(c), device=c.device), c)

    def _begin(self, t: float, sigma: float) -> None:
        """Tell the guidance of a step, where the time has changed, and of a trajectory."""
        if t == self._time and self._step >= 0:
            return
        new = self._step < 0 or t > self._time
        self._time, self._step = t, 0 if new else self._step + 1
        if new and self._guided.take_levels is not None:
            prediction, pipe = self._models[0].prediction, self._place[0]
            levels = prediction.level(torch.as_tensor(pipe.scheduler.timesteps).double().cpu())
            self._guided.take_levels([*dict.fromkeys(levels.tolist()), 0.0])
        if self._guided.begin_step is not None:
            self._guided.begin_step(self._step, sigma)


class Asked(NamedTuple):
    """What a pipeline asks of its network: x_t (B, C, H, W), its time, what it tells it."""

    x_t: Tensor
    t: Any
    told: Told
    guidance: float | None = None  # that number of Flux


def asked_of(net: Any, args: tuple, given: dict) -> Asked:
    """A call of the network read; UserError for what would not be handed on."""
    given = {name: value for name, value in given.items() if value is not None}
    x = args[0] if args else given.pop("hidden_states", None)
    x = given.pop("sample") if x is None else x
    t = args[1] if len(args) > 1 else given.pop("timestep")
    names = {"encoder_hidden_states": "prompt", "pooled_projections": "pooled"}
    names["class_labels"] = "class"
    told = {name: given.pop(key) for key, name in names.items() if key in given}
    told |= given.pop("added_cond_kwargs", None) or {}
    guidance = None
    if is_flux(net):
        where, guided = given.pop("img_ids"), given.pop("guidance", None)
        given.pop("txt_ids")
        guidance, t = None if guided is None else float(guided.reshape(-1)[0]), 1000 * t
        x = _unpacked(x, int(where[:, 1].max()) + 1, int(where[:, 2].max()) + 1)
    if any(value != {} for value in given.values()):
        raise UserError(f"{', '.join(given)} of the pipeline's call would not be handed on")
    return Asked(x, t, told, guidance)


def answered(net: Any, answer: Tensor, return_dict: bool) -> Any:
    """The answer (B, C, H, W) in the form of the network's own."""
    if is_flux(net):
        B, C, H, W = answer.shape
        blocks = answer.reshape(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5)
        answer = blocks.reshape(B, H * W // 4, 4 * C)
    elif (net.config.get("out_channels") or 0) == 2 * answer.shape[1]:
        answer = torch.cat([answer, torch.zeros_like(answer)], 1)  # a variance, which DDIM drops
    return Answer(sample=answer) if return_dict else (answer,)


class Answer(NamedTuple):
    """As diffusers' outputs are: by name and by number."""

    sample: Tensor


def _unpacked(x: Tensor, rows: int, columns: int) -> Tensor:
    """Flux's (B, rows columns, 4 C) as (B, C, 2 rows, 2 columns)."""
    x = x.reshape(len(x), rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(x), -1, 2 * rows, 2 * columns)


def _classes(net: Any) -> Conditions | None:
    """Of a network that is told them by number; None of one that takes prompts."""
    if type(net).__name__ in ("DiTTransformer2DModel", "Transformer2DModel"):
        return Classes(int(net.config.num_embeds_ada_norm))
    if type(net).__name__ == "UNet2DModel":
        raise UserError("a UNet2DModel is told nothing, so no guidance here has a use for it")
    return None


def _rows(pipe: Any, prompts: list[str] | None, null: Told | None) -> Told:
    """The prompts that are known beforehand and, last, "no class": {name: (K + 1, ...)}."""
    if null is None and getattr(pipe, "text_encoder", None) is None:
        raise UserError("the pipeline has no text encoder: null={prompt: (1, tokens, d), ...}")
    if null is not None and not prompts:
        return null
    found = encoded(pipe, [*(prompts or []), ""])
    return (
        found if null is None else {n: torch.cat([x[:-1], null[n].to(x)]) for n, x in found.items()}
    )


def _repeated(rows: Told, least: int) -> Told:
    """At least so many rows, of which the last is repeated."""
    return {name: torch.cat([x, *[x[-1:]] * (least - len(x))]) for name, x in rows.items()}


def _matched(known: Told, own: Told) -> Tensor:
    """Which of the known rows each row of the call is, (B,); -1 for none."""
    B = len(next(iter(own.values())))
    K = len(next(iter(known.values())))
    found = torch.full((B,), -1, device=next(iter(own.values())).device)
    for k in range(K):
        same = torch.ones_like(found, dtype=torch.bool)
        for name, rows in own.items():
            far = (rows - known[name][k]).float().flatten(1).norm(dim=1)
            same &= far <= SAME * rows.float().flatten(1).norm(dim=1)
        found = torch.where(same & (found < 0), k, found)
    return found


def _refuse(guided: Guided, name: str) -> None:
    """UserError for a method that asks of its sampler what diffusers' schedulers do not give."""
    asks = [hook for hook in NOT_GIVEN if getattr(guided, hook) is not None]
    asks += [key for key in ("restarts",) if getattr(guided, key)]
    if asks or guided.particles > 1:
        what = ", ".join(asks) or "particles"
        raise UserError(f"guidance {name} asks its sampler for {what}, which only ours give")
