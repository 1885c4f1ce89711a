"""Scores of samples while a training runs: FID and its fellows as curves beside the loss."""

import csv
import time
from pathlib import Path
from typing import Annotated, Any, cast

import lightning as L
import torch

from lightning_cfg.config import (
    AtLeast,
    Between,
    Count,
    Data,
    Decode,
    Features,
    Metric,
    NonNegative,
    Positive,
    Sampler,
    Scales,
    Seed,
)
from lightning_cfg.config.check import check
from lightning_cfg.data.build import build_data
from lightning_cfg.diffusion.rectified_flow import Flow
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.build import scorer_of
from lightning_cfg.evaluation.decoded import Decoding, decoding_of
from lightning_cfg.evaluation.gather import ALL, Gathered
from lightning_cfg.evaluation.reference import Real
from lightning_cfg.evaluation.sample_sets import held, real_set
from lightning_cfg.evaluation.tables import as_csv
from lightning_cfg.interfaces import check_same
from lightning_cfg.latents.pictures import Pictures
from lightning_cfg.refinement.solver import Solver, refined
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.files import write_text
from lightning_cfg.runs.names import EVALUATIONS
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.runs.run import content_of
from lightning_cfg.training.each_step import EachStep
from lightning_cfg.training.evaluated import FromFiles, FromNoise, Samples
from lightning_cfg.training.grids import show
from lightning_cfg.training.learners import Classification, Learner, Refinement


class EvaluateSamples(EachStep):
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
    decode      what makes images of latents, samples and data: all is scored as images then
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
        every: Annotated[int, AtLeast(1)] = 5000,
        n: Count = 2000,
        scales: Scales = (1.0,),
        sampler: Sampler = {"name": "heun", "steps": 18},
        flow: str | None = None,
        rtol: Annotated[float, NonNegative] = 1e-5,
        atol: Annotated[float, Positive] = 1e-5,
        sources: dict[str, str] = {},
        metrics: list[Metric] | None = None,
        features: Features | dict[str, Features] | None = None,
        statistics: dict[str, str] = {},
        reference: str | list[str] = "held_out",
        classifier: str | None = None,
        real: Count | None = None,
        bank: Count | None = None,
        data: Data | None = None,
        decode: Decode | None = None,
        columns: Annotated[int, Between(0, 1000)] = 8,
        seed: Seed = 0,
        batch_size: Annotated[int, AtLeast(1)] = 256,
    ):
        self.directory, self.every, self.n, self.columns = directory, every, n, columns
        self.batch_size, self.data, self.flow_path = batch_size, data, flow
        self.decode = check(Decode | None, decode, "evaluation.decode")
        self._decode: Decoding | None = None
        self.solver = Solver(rtol=rtol, atol=atol)
        sampler = check(Sampler, sampler, "evaluation.sampler")
        self.samples = (
            FromFiles(n, sources)
            if sources
            else FromNoise(n, seed, list(scales), sampler, batch_size)
        )
        self.scoring = {"metrics": metrics, "features": features, "statistics": statistics}
        self.scoring["classifier"] = classifier
        self.scoring["reference"] = [reference] if isinstance(reference, str) else list(reference)
        self.per_class = {"held_out": real, "bank": bank}
        self._flow: Flow | None = None
        self._rows: list[dict] = []

    def check(
        self, learner: Learner, data: Any, section: dict, device: torch.device | str = "cpu"
    ) -> None:
        """UserError if these samples cannot be made or scored, before anything is trained.

        It scores as many real points in place of samples, so that every metric has run once.
        section  of the training data in the config
        """
        self._check_learner(learner)
        if data.condition is not None:
            raise UserError(
                "evaluation: the flow of pairs with a condition is scored by refine and evaluate"
            )
        own = data if self.data is None else build_data(self.data)
        self._decode, shape = decoding_of(self.decode, device), tuple(data.shape)
        decoded = self._decode is not None and self._decode.takes(own.shape)
        if self._decode is not None:
            own, shape = self._decode.data(own), self._decode.shape(shape)
        if tuple(own.shape) != shape:
            raise UserError(
                f"evaluation.data has shape {tuple(own.shape)}, the training data {shape}"
            )
        if len({own.num_classes, data.num_classes} - {0}) > 1:
            raise UserError(
                f"evaluation.data has {own.num_classes} classes, the training data "
                f"{data.num_classes}"
            )
        real = self._real_side(own, section if self.data is None else self.data, decoded)
        how = {"device": device, "batch_size": self.batch_size}
        self._scorer = scorer_of(real=real, **how, **self.scoring)
        self._class_names = data.class_names
        self._classes = data.num_classes  # which are those of the model, whatever it is scored by
        self.samples.check(learner, data)
        labels = self.samples.labels
        if self.flow_path is not None:
            self._flow = _refinement(self.flow_path, data)
        if isinstance(learner, Refinement) or self._flow is not None:
            labels += [f"{label}_refined" for label in labels]
        for label in labels:
            if labels.count(label) > 1:
                raise UserError(f"evaluation: two sets of samples would be called {label}")
        scores = self._rehearsed(own)
        self.names = [f"{metric}/{label}" for label in labels for metric in scores]

    def _check_learner(self, learner: Learner) -> None:
        """UserError if what is asked for is not for this kind of model."""
        refines, name = isinstance(learner, Refinement), type(learner).__name__
        given = isinstance(self.samples, FromFiles)
        if isinstance(learner, Classification):
            raise UserError(f"evaluation needs a learner whose model makes samples, not {name}")
        if refines and not given:
            raise UserError(f"learner {name} needs evaluation.sources, samples that it refines")
        if given and not refines:
            raise UserError(f"learner {name} starts from noise, not sources")
        if refines and (self.flow_path is not None or self.data is None):
            raise UserError(
                "learner Refinement is the flow itself: evaluation.flow is for base models, and "
                "evaluation.data has to say what the samples are compared with"
            )

    def _real_side(self, data: Any, section: dict, decoded: bool) -> Real:
        """What samples are compared with, class by class where the density is known."""
        section, content = content_of(section)
        by_class = data.truth is not None
        return Real(
            data,
            section=section,
            content=content,
            per_class=self.per_class,
            groups=list(range(max(1, data.num_classes))) if by_class else [ALL],
            decode=self._decode.known if self._decode and decoded else (),
        )

    def _rehearsed(self, data: Any) -> dict[str, float]:
        """The scores of n real points in place of samples."""
        points = real_set(data, "bank", self.per_class["bank"])
        rows = torch.arange(self.n) * max(1, len(points) // self.n) % len(points)
        some = points.chosen(rows)
        some.c = some.c.clamp(min=0)  # targets of Pairs have no class
        return self._scores(self._scorer.gather(some))[0]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._rows, table = [], self.directory / EVALUATIONS
        if table.is_file():
            self._rows = _rows_before(table, trainer.global_step)
        self._scorer.to(trainer.strategy.root_device)
        if self._flow is not None:
            self._flow.to(trainer.strategy.root_device)

    def due(self, step: int, last: int) -> bool:
        """Whether there is an evaluation after this step, of so many."""
        return step % self.every == 0 or step == last

    def after_step(self, trainer: L.Trainer, learner: Learner, step: int) -> None:
        if self.due(step, trainer.max_steps):
            start = time.monotonic()
            self.evaluate(trainer, learner)
            learner.not_training(time.monotonic() - start)

    def evaluate(self, trainer: L.Trainer, learner: Learner) -> None:
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
            some = held(x, c, {}, as_bytes=self._decode is None).decoded(self._decode)
            found[label] = self._scorer.gather(some).all_gather()
            if self.columns and drawable(some.shape):
                pictures = Pictures(some.shape, self._decode and self._decode.decoder)
                shown[label] = pictures.first(x, c, self.columns, self._classes)
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
        write_text(self.directory / EVALUATIONS, as_csv(self._rows))
        learner.publish(learner.scores)
        for logger in trainer.loggers:
            logger.log_metrics(learner.scores, step=step)
            logger.save()
        if shown:
            named = {"columns": self.columns, "names": self._class_names}
            sheet = contact_sheet(shown, self._classes, **named)
            show(sheet, self.directory / f"figures/samples_{step:06d}.png", "evaluated", trainer)

    def _sets(self, trainer: L.Trainer, learner: Learner) -> Samples:
        """This rank's share of the samples of every set, refined ones too."""
        model, ranks = learner.averaged(), Ranks(trainer.global_rank, trainer.world_size)
        sets = self.samples.share(model, learner.device, ranks)
        flow = cast(Flow, model) if isinstance(learner, Refinement) else self._flow
        if flow is not None:
            for label, (x, c) in list(sets.items()):
                blocks = zip(x.split(self.batch_size), c.split(self.batch_size), strict=True)
                known = flow.known_steps
                solver = self.solver if known is None else Solver("euler", steps=known)
                better = [refined(flow, some, of, solver)[0] for some, of in blocks]
                sets[f"{label}_refined"] = torch.cat(better), c
        return sets

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


def _refinement(path: str, data: Any) -> Flow:
    """The flow of a run that refines such samples; UserError if it does not."""
    flow = checkpoints.restore(path)
    if not isinstance(flow, Flow) or not flow.refines:
        raise UserError(f"evaluation.flow: {path} is no flow that refines samples")
    check_same("evaluation.flow", flow, "the data have", data)
    return flow


def _rows_before(table: Path, step: int) -> list[dict]:
    """The rows of an earlier call up to this step: what came after it is scored again."""
    with open(table, newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]
