"""A study as a graph of stages: one run of a verb each, and what it needs of the others."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning_cfg.studies.chosen import Chosen
from lightning_cfg.studies.ranges import Setting


@dataclass(frozen=True)
class Output:
    """In a stage's settings, in the place of a path: the run directory of another stage."""

    stage: str


@dataclass(frozen=True)
class Stage:
    """One run of a verb with these keys, without its run_dir.

    folder  its name without the study's seed, by which its directory is called: so the stages of
            one seed lie where a study of that seed alone has them
    """

    name: str
    verb: str
    settings: dict[str, Any]
    folder: str = ""

    @property
    def needs(self) -> list[str]:
        """The stages whose outputs it reads, by name."""
        return sorted(set(_outputs(self.settings)))


@dataclass
class Scored:
    """Where the report finds one method at one scale, by names of stages.

    sets    {(before or after, kind of flow): the samples}
    table   their scores
    traced  their trajectories, measured
    """

    method: str
    scale: float
    sets: dict[tuple[str, str], str]
    table: str
    traced: str | None = None


@dataclass(frozen=True)
class Tuned:
    """How a method was tuned: the name of its stage, and what was tried."""

    stage: str
    settings: list[Setting]


@dataclass
class Graph:
    """Every stage of a study on one data set and by one seed, each once, and what is shown of them.

    seeded  "seed 1" in front of the stages' names, where the study has several seeds
    judges  fits that only measure, and those of `once`, {name: output}: the other seeds' too
    """

    case: str
    seed: int = 0
    seeded: str = ""
    judges: dict[str, Output] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    scored: list[Scored] = field(default_factory=list)
    real: str = ""  # the scores of real points
    tuned: dict[str, Tuned] = field(default_factory=dict)  # by method
    known: dict[str, str] = field(default_factory=dict)  # by verb and settings, of all graphs

    def add(self, name: str, verb: str, settings: dict) -> Output:
        """One more stage, unless another is the same by another name, as variants share pairs, and
        cases what is trained on the same data."""
        folder = f"{self.case} {name}".strip()
        name = f"{self.seeded} {folder}".strip()
        asked = json.dumps([verb, settings], sort_keys=True, default=repr)
        if asked not in self.known:
            self.known[asked] = name
            self.stages[name] = Stage(name, verb, settings, folder)
        return Output(self.known[asked])


def _outputs(value: Any) -> Iterator[str]:
    if isinstance(value, Output):
        yield value.stage
    elif isinstance(value, Chosen):
        yield value.stage
        yield from _outputs(value.each)
    elif isinstance(value, dict):
        yield from _outputs(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _outputs(item)
