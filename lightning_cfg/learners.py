"""The LightningModules: they average the model's loss, log it and step; the model owns the loss."""

import inspect
import time

import lightning as L
import torch
from torch import Tensor

from lightning_cfg.draws import Draws, key
from lightning_cfg.ema import EMA
from lightning_cfg.errors import Diverged, UserError

__all__ = ["Classification", "Diffusion", "Refinement"]  # what a config can name


class Learner(L.LightningModule):
    """What the learners share: AdamW, warm-up, averages of the weights, a watch for NaN.

    lr             learning rate, reached linearly over `warmup` steps
    gradient_clip  largest norm of the gradient of all parameters; null: as it comes
    ema_half_life  half-lives of the averages in images; the first is used unless another is asked
    ema_ramp       no half-life exceeds this fraction of the images seen so far
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        warmup: int = 0,
        gradient_clip: float | None = None,
        ema_half_life: list[int] = (500_000,),
        ema_ramp: float = 0.05,
    ):
        super().__init__()
        if not ema_half_life:
            raise UserError("learner.ema_half_life must name at least one half-life")
        self.model = model
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.gradient_clip = gradient_clip
        self.ema = EMA(model, list(ema_half_life), ema_ramp)
        self.described: dict = {}  # what a checkpoint says of itself: config, shape, classes
        self._log_sum, self._log_count = 0.0, 0
        self._seconds_before, self._started = 0.0, time.monotonic()

    def seconds(self) -> float:
        """Time spent on what the weights have learned, in all the calls that it took."""
        return self._seconds_before + time.monotonic() - self._started

    def check(self, data: object) -> None:
        """UserError if it cannot learn from this data set."""
        if getattr(data, "has_sources", False):
            name = type(self).__name__
            raise UserError(f"learner {name} would ignore the sources of the pairs: use Refinement")

    def losses(self, batch: dict, draws: Draws) -> Tensor:
        """The model's loss for each sample of the batch, (b,)."""
        return self.model.loss(batch["y"], batch["c"], draws)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        draws = batch["draws"]
        # Dropout draws from the global generators: keyed too, and different on every rank.
        torch.manual_seed(key("global", draws.seed, draws.step, draws.rows.start))
        loss = self.losses(batch, draws).mean()
        self._watch(loss, draws.step)
        self._log_sum, self._log_count = self._log_sum + loss.detach(), self._log_count + 1
        if (draws.step + 1) % self.trainer.log_every_n_steps == 0:
            self.log("loss", self._log_sum / self._log_count)
            self.log("lr", self.optimizers().param_groups[0]["lr"])
            self._log_sum, self._log_count = 0.0, 0
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True
        )
        ramp = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / max(1, self.warmup))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ramp, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *args: object, **kwargs: object
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=self.gradient_clip)

    def on_fit_start(self) -> None:
        self.ema.to(self.model)
        self._bad_step = torch.full((), -1, device=self.device)

    def optimizer_step(self, *args, **kwargs) -> None:
        # Here and not in a batch-end hook: callbacks, which save, run before the module's hooks.
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.trainer.global_step + 1, self.trainer.datamodule.batch_size)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self._stop_if_bad()
        checkpoint.update(self.described, ema=self.ema.state_dict(), seconds=self.seconds())

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.ema.load_state_dict(checkpoint["ema"])
        self._seconds_before = checkpoint.get("seconds", 0.0)

    def _watch(self, loss: Tensor, step: int) -> None:
        """Remember the first step whose loss was not finite; on a GPU look only now and then."""
        unseen = (self._bad_step < 0) & ~loss.isfinite()
        self._bad_step = torch.where(unseen, step, self._bad_step)
        if self.device.type == "cpu" or (step + 1) % self.trainer.log_every_n_steps == 0:
            self._stop_if_bad()

    def _stop_if_bad(self) -> None:
        step = int(self._bad_step)
        if step >= 0:
            raise Diverged(
                f"the loss was not finite at step {step}; the run stopped and its last good "
                "checkpoint is kept (a lower learner.lr or learner.gradient_clip may help)"
            )


class Diffusion(Learner):
    """A base model: EDM, DDPM, or a Flow from noise."""


class Classification(Learner):
    """A classifier of noisy or clean samples."""


class Refinement(Learner):
    """The flow from generated samples to their nearest real neighbours (Zhao & Schwing 2025)."""

    def check(self, data: object) -> None:
        if not getattr(data, "has_sources", False):
            raise UserError("learner Refinement needs data Pairs, whose batches have sources")
        if "x0" not in inspect.signature(self.model.loss).parameters:
            name = type(self.model).__name__
            raise UserError(f"learner Refinement needs model Flow, whose loss takes x0, not {name}")

    def losses(self, batch: dict, draws: Draws) -> Tensor:
        return self.model.loss(batch["y"], batch["c"], draws, x0=batch["x0"])
