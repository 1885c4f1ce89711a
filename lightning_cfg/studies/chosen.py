"""What a stage of `tune` chooses, in the place of the sections that are chosen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.manifests import as_written, content_hash, read_json
from lightning_cfg.runs.names import TUNED
from lightning_cfg.runs.to_come import ToCome


@dataclass(frozen=True)
class Chosen:
    """In a stage's settings, in the place of a section: that of the setting that is chosen.

    stage   of `tune`
    each    the section by each of its settings
    counts  whether the section is a sampler's, whose steps it has chosen too
    """

    stage: str
    each: tuple[Any, ...]
    counts: bool = False

    def by(self, run: str | Path) -> Any:
        """The section that this run of `tune` has chosen."""
        found = choice_of(run)
        section = self.each[found["setting"]]
        if self.counts and found["steps"] is not None:
            section = {**section, "steps": found["steps"]}
        return section


def choice_of(run: str | Path) -> dict[str, Any]:
    """What a run of `tune` has chosen: {setting, steps, nfe, reached, ...}."""
    file = output_of(run, TUNED)
    if isinstance(file, ToCome):
        return file.content
    content_hash(file)
    found = read_json(file)
    with as_written(file):
        range(found["of"]).index(found["setting"])
        return {**found, "steps": found["steps"]}


def at_first(value: Any) -> Any:
    """Settings of a stage as they are where the first one of each choice is chosen."""
    if isinstance(value, Chosen):
        return at_first(value.each[0])
    if isinstance(value, dict):
        return {key: at_first(item) for key, item in value.items()}
    return value
