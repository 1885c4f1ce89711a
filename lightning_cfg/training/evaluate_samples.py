"""Scores of samples while a training runs: FID and its fellows as curves beside the loss."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_cfg.config import Choice, Data, Features, Metric, Sampler, build
from lightning_cfg.diffusion.models import Flow
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.gather import ALL, Gathered
from lightning_cfg.evaluation.reference import Real
from lightning_cfg.evaluation.sample_sets import held, real_set
from lightning_cfg.evaluation.tables import as_csv
from lightning_cfg.guidance import classifier_free
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.files import load_samples, output_of, sha256, write_text
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.runs.run import content_of
from lightning_cfg.sampling.prepared import Prepared, within_limits
from lightning_cfg.sampling.sample import check_finite
from lightning_cfg.training.callbacks import check_generation, show
from lightning_cfg.training.learners import Classification, Refinement
from lightning_cfg.verbs.evaluate import scorer_of
from lightning_cfg.verbs.refine import Solver, refined

TABLE = "metrics/evaluations.csv"


class EvaluateSamples(L.Callback):
    """Scores samples of the averaged weights every `every` steps and after the last one.

    A base model generates n samples of the same seeds at each of the scales of classifier-free
    guidance; a refinement refines the samples that it is given. The scores are logged as
    fid_2k/scale_2, fid_2k/scale_2_refined and so on, and kept in metrics/evaluations.csv.

    every       steps
    n           samples at each scale, shared out over all ranks
    scales      1 is unguided
    sampler     as in `generate`
    flow        of a base model: a run of `fit` of a refinement; samples are scored after it too
    rtol, atol  of the refinement, as in `refine`
    sources     of a refinement, {label: samples}: what it refines, scored before and after
    metrics, features, statistics, reference, classifier, real, bank, data: as in `evaluate`; data
                left out are those that are trained on
    columns     samples per class and set in figures/samples_<step>.png; 0: no picture
    batch_size  of generation, refinement and feature spaces

    Training is not touched, as by Grids. Every rank makes its share, and all meet in one exchange
    of sums and features; only the first then computes the scores, and the others go on.
    """

    def __init__(
        self,
        directory: Path,
        /,
        *,
        every: int = 5000,
        n: int = 2000,
        scales: list[float] = (1.0,),
        sampler: Sampler = {"name": "heun", "steps": 18},  # noqa: B006
        flow: str | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        sources: dict[str, str] = {},  # noqa: B006
        metrics: list[Metric] | None = None,
        features: Features | dict[str, Features] | None = None,
        statistics: dict[str, str] = {},  # noqa: B006
        reference: str | list[str] = "held_out",
        classifier: str | None = None,
        real: int | None = None,
        bank: int | None = None,
        data: Data | None = None,
        columns: int = 8,
        seed: int = 0,
        batch_size: int = 256,
    ):
        if min(every, n, batch_size) < 1 or columns < 0:
            raise UserError(
                f"evaluation: every={every}, n={n} and batch_size={batch_size} must be at least 1, "
                f"and columns={columns} 0 or more"
            )
        if not scales:
            raise UserError("evaluation.scales must name one scale, such as 1 for unguided")
        self.directory, self.every, self.n, self.scales = directory, every, n, list(scales)
        self.sampler = Choice("lightning_cfg.diffusion.samplers").check(
            sampler, "evaluation.sampler"
        )
        self.flow_path, self.sources, self.data, self.columns = flow, sources, data, columns
        self.seed, self.batch_size = seed, batch_size
        self.solver = Solver(rtol=rtol, atol=atol)
        self.settings = {"metrics": metrics, "features": features, "statistics": statistics}
        self.settings["classifier"] = classifier
        self.settings["reference"] = [reference] if isinstance(reference, str) else list(reference)
        self.per_class = {"held_out": real, "bank": bank}
        self._given: dict[str, tuple[Tensor, Tensor]] = {}
        self._flow: Flow | None = None
        self._rows: list[dict] = []
        self._done = -1

    def check(
        self,
        learner: L.LightningModule,
        data: Any,
        section: dict,
        device: torch.device | str = "cpu",
    ) -> None:
        """UserError if these samples cannot be made or scored, before anything is trained.

        It scores as many real points in place of samples, so that every metric has run once.
        section  of the training data in the config
        """
        refines = isinstance(learner, Refinement)
        name = type(learner).__name__
        if isinstance(learner, Classification):
            raise UserError(f"evaluation needs a learner whose model makes samples, not {name}")
        if refines != bool(self.sources):
            what = "needs evaluation.sources, samples that it refines" if refines else "starts from"
            raise UserError(f"learner {name} {what}" + ("" if refines else " noise, not sources"))
        if refines and (self.flow_path is not None or self.data is None):
            raise UserError(
                "learner Refinement is the flow itself: evaluation.flow is for base models, and "
                "evaluation.data has to say what the samples are compared with"
            )
        own = data if self.data is None else build("lightning_cfg.data", self.data)
        if tuple(own.shape) != tuple(data.shape):
            raise UserError(
                f"evaluation.data has shape {tuple(own.shape)}, the training data "
                f"{tuple(data.shape)}"
            )
        if len({own.num_classes, data.num_classes} - {0}) > 1:
            raise UserError(
                f"evaluation.data has {own.num_classes} classes, the training data "
                f"{data.num_classes}"
            )
        section, files = content_of(section if self.data is None else self.data, own)
        by_class = own.truth is not None
        real = Real(
            own,
            section=section,
            content=tuple(map(sha256, files.values())),
            per_class=self.per_class,
            groups=list(range(max(1, own.num_classes))) if by_class else [ALL],
        )
        how = {"device": device, "batch_size": self.batch_size}
        self._scorer = scorer_of(real=real, **how, **self.settings)
        self._classes = data.num_classes  # which are those of the model, whatever it is scored by
        if refines:
            self._read_sources(data)
            labels = list(self.sources)
        else:
            check_generation("evaluation", learner, data, self.scales, self.sampler)
            labels = [f"scale_{scale:g}" for scale in self.scales]
        if self.flow_path is not None:
            self._flow = self._refinement(data)
        if refines or self._flow is not None:
            labels += [f"{label}_refined" for label in labels]
        for label in labels:
            if labels.count(label) > 1:
                raise UserError(f"evaluation: two sets of samples would be called {label}")
        stand_in = real_set(own, "bank", self.per_class["bank"])
        rows = torch.arange(self.n) * max(1, len(stand_in) // self.n) % len(stand_in)
        some = stand_in.chosen(rows)
        some.c = some.c.clamp(min=0)  # targets of Pairs have no class
        scores, _ = self._scores(self._scorer.gather(some))
        self.names = [f"{metric}/{label}" for label in labels for metric in scores]

    def on_train_start(self, trainer: L.Trainer, *args: object) -> None:
        self._done = trainer.global_step  # before it was resumed from
        self._rows = []
        place = trainer.strategy.root_device
        for space in self._scorer.spaces.values():
            space.to(place)
        self._scorer.how["device"] = place
        for model in (self._scorer.classifier, self._flow):
            if model is not None:
                model.to(place)
        if (self.directory / TABLE).is_file():
            self._rows = _rows_before(self.directory / TABLE, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, learner: L.LightningModule, *args: object
    ) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if not due or step in (self._done, 0):
            return
        self._done, start = step, time.monotonic()
        self.evaluate(trainer, learner)
        learner.not_training(time.monotonic() - start)

    def evaluate(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Make, score and log the samples of this step."""
        step, found, shown, trouble = trainer.global_step, {}, {}, ""
        try:
            sets = self._sets(trainer, learner)
        except UserError as error:
            sets, trouble = {}, str(error)
        # a rank that has no samples to bring must not leave the others waiting for it
        if not trainer.strategy.reduce_boolean_decision(not trouble, all=True):
            if trouble:
                print(f"evaluation at step {step} was left out: {trouble}")
            return
        for label, (x, c) in sets.items():
            found[label] = self._scorer.gather(held(x, c, {})).all_gather()
            if self.columns and drawable(tuple(x.shape[1:])):
                shown[label] = x, c
        if not trainer.is_global_zero:
            return
        learner.scores, learner.scored_at = {}, step
        for label, gathered in found.items():
            try:
                scores, n = self._scores(gathered)
            except UserError as error:  # such as too few samples of a class, this time
                print(f"evaluation of {label} at step {step} was left out: {error}")
                continue
            learner.scores |= {f"{name}/{label}": value for name, value in scores.items()}
            self._rows.append({"step": step, "samples": label, "n": n, **scores})
        write_text(self.directory / TABLE, as_csv(self._rows))
        for logger in trainer.loggers:
            logger.log_metrics(learner.scores, step=step)
            logger.save()
        if shown:
            sheet = contact_sheet(shown, self._classes, columns=self.columns)
            show(sheet, self.directory / f"figures/samples_{step:06d}.png", "evaluated", trainer)

    def _sets(
        self, trainer: L.Trainer, learner: L.LightningModule
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """This rank's share of the samples of every set, by label: x (n_r, *shape) and c (n_r,)."""
        rank, ranks, sets = trainer.global_rank, trainer.world_size, {}
        model = learner.averaged()
        if self._given:
            for label, (x, c) in self._given.items():
                sets[label] = x[rank::ranks], c[rank::ranks]
            flow = model
        else:
            seeds = torch.arange(self.seed, self.seed + self.n)[rank::ranks]
            for scale in self.scales:
                sets[f"scale_{scale:g}"] = self._generated(model, scale, seeds, learner.device)
            flow = self._flow
        if flow is not None:
            for label, (x, c) in list(sets.items()):
                blocks = zip(x.split(self.batch_size), c.split(self.batch_size), strict=True)
                better = [refined(flow, some, of, self.solver)[0] for some, of in blocks]
                sets[f"{label}_refined"] = torch.cat(better), c
        return sets

    @torch.no_grad()
    def _generated(
        self, model: torch.nn.Module, scale: float, seeds: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        made = Prepared(
            networks={},
            denoise=classifier_free(model, scale=scale),
            sampler=within_limits(self.sampler, model),
            shape=tuple(self._scorer.real.data.shape),
            classes=self._classes,
            class_label=None,
            device=device,
        )
        xs, cs = [], []
        for some in seeds.split(self.batch_size):
            c, steps = made.start(some)
            *_, (_, x) = steps
            check_finite(x, some)
            xs.append(x.float().cpu())
            cs.append(c.cpu())
        return torch.cat(xs), torch.cat(cs)

    def _scores(self, found: Gathered) -> tuple[dict[str, float], int]:
        """The columns of a set, classes averaged where they are scored by themselves; and its n."""
        sums: dict[str, float] = {}
        total = 0
        for group in self._scorer.groups:
            n = len(found.of(group).c)
            if n:
                row, _ = self._scorer.score(found, group)
                total += n
                for name, value in row.items():
                    sums[name] = sums.get(name, 0.0) + n * value
        return {name: value / total for name, value in sums.items()}, total

    def _read_sources(self, data: Any) -> None:
        """The first n samples of every source, which all steps refine."""
        for label, path in self.sources.items():
            file = output_of(path, SAMPLES)
            samples = load_samples(file, data.shape, data.num_classes)
            if len(samples["x"]) < self.n:
                raise UserError(
                    f"{file} holds {len(samples['x'])} samples, not the {self.n} wanted"
                )
            self._given[label] = samples["x"][: self.n], samples["c"][: self.n]

    def _refinement(self, data: Any) -> Flow:
        flow = checkpoints.restore(self.flow_path)
        if not isinstance(flow, Flow) or not flow.refines:
            raise UserError(f"evaluation.flow: {self.flow_path} is no flow that refines samples")
        for what in ("shape", "num_classes"):
            own, other = getattr(flow, what), getattr(data, what)
            if own != other:
                raise UserError(f"evaluation.flow has {what} {own}, but the data have {other}")
        return flow


def _rows_before(table: Path, step: int) -> list[dict]:
    """The rows of an earlier call up to this step: what came after it is scored again."""
    with open(table, newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]
