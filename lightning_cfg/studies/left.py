"""How long what is left of a study will take, by what its stages have taken."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from lightning_cfg.runs.progress import clock
from lightning_cfg.sampling.sample import evaluations_of
from lightning_cfg.studies.chosen import at_first
from lightning_cfg.studies.graph import Stage


@dataclass
class Taken:
    """The seconds of stages that are done, by verb, and the work that they were spent on.

    stages  all of the study, by name
    """

    stages: dict[str, Stage]
    work: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: Stage, seconds: float) -> None:
        verb = stage.verb
        self.work[verb] = self.work.get(verb, 0.0) + self._work_of(stage)
        self.seconds[verb] = self.seconds.get(verb, 0.0) + seconds

    def left(self, todo: Iterable[Stage]) -> str:
        """What these stages will take, in words; "" where nothing has been measured.

        `at least` where there is a verb among them of which no stage is done.
        """
        stages = list(todo)
        known = [stage for stage in stages if self.work.get(stage.verb)]
        if not known:
            return ""
        each = [
            self._work_of(stage) * self.seconds[stage.verb] / self.work[stage.verb]
            for stage in known
        ]
        about = "about" if len(known) == len(stages) else "at least"
        return f"{about} {clock(sum(each))}"

    def _work_of(self, stage: Stage) -> float:
        """By which stages of a verb differ in time: images, evaluations, samples; or the stage."""
        keys = at_first(stage.settings)
        if stage.verb == "fit":
            return keys["batch_size"] * keys["trainer"].get("max_steps", 1)
        if stage.verb == "generate":
            each = evaluations_of(keys["sampler"]) if "sampler" in keys else None
            return keys["n"] * (each or 1) * len(keys["models"])
        if stage.verb == "tune":
            return keys["n"] * len(keys["settings"]) * len(keys["scales"])
        if stage.verb == "pair":
            return keys["n"]
        if stage.verb == "refine":
            return self.stages[keys["samples"].stage].settings["n"]
        return 1
