"""Faults of every kind in every verb: odd numbers, kills, flipped bits; and what comes of each.

    python -m helpers.faults docs/results/faults/README.md       all of them, and their table

A fault ends in one of the `ENDS`. Verbs are called in this process, as from the command line.
"""

import contextlib
import io
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.bases import (
    EYE,
    GENERATION,
    JUDGE,
    MIXTURE,
    PICTURES,
    STUDY,
    TRAINING,
    all_bases,
    vae,
)
from helpers.dying import Dying
from helpers.killed import Killed
from helpers.latents import TOY
from helpers.runs import assert_same
from lightning_cfg.cli import main
from lightning_cfg.runs.checkpoints import LAST
from lightning_cfg.runs.files import sha256
from lightning_cfg.verbs.encode import encode
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.study import study
from lightning_cfg.verbs.trace import trace

LONGEST = 60  # seconds, beyond which it counts as a hang
NUMBERS = (0, -1, 1, 1e30, math.nan, math.inf, "many")
OTHERS = ("judge", "eye", "strength", "pictures", "free")  # trainings as `base` is one
ENDS = {
    "refused": "one line, status 2, nothing written",
    "answered": "a result, finite where the input is",
    "ended": "one line, status 1: a training that diverged",
    "recovered": "started again, the same files bit for bit",
    "made again": "damage told, and the same file made again",
    "traceback": "",
    "hang": f"more than {LONGEST} s",
    "nonsense": "accepted, with a result that is not finite, or damage not seen",
}
GOOD = ("refused", "answered", "ended", "recovered", "made again")


@dataclass
class Answer:
    """What a call came to: its status, or None after a traceback or a hang, and what it said."""

    status: int | None
    out: str
    err: str

    @property
    def one_line(self) -> bool:
        lines = [x for x in self.err.strip().splitlines() if "error: " in x]
        return len(lines) == 1 and "Traceback" not in self.err


class Hang(BaseException):
    """A call that takes too long."""


def call(verb: Callable, config: dict) -> Answer:
    """A verb as from the command line, in the current folder."""
    Path("config.yaml").write_text(yaml.safe_dump(config))
    out, err, status = io.StringIO(), io.StringIO(), 0

    def late(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(verb, ["--config", "config.yaml"])
    except SystemExit as stop:
        status = stop.code
    except Killed:
        raise
    except Hang:
        status, _ = None, err.write("hang")
    except BaseException:
        status, _ = None, err.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Answer(status, out.getvalue(), err.getvalue())


def ended(answer: Answer, place: Path) -> str:
    """Of `ENDS`, that of a call whose run would lie at `place`."""
    if answer.status is None:
        return "hang" if answer.err.endswith("hang") else "traceback"
    if answer.status == 0:
        return "answered" if finite(place) else "nonsense"
    if not answer.one_line:
        return "traceback"
    if answer.status == 1:
        return "ended"
    return "refused" if not place.exists() else "nonsense"


def finite(place: Path) -> bool:
    """Whether all that a run has made is."""
    from safetensors.torch import load_file

    for file in place.rglob("*.safetensors"):
        if not all(held.isfinite().all() for held in load_file(file).values()):
            return False
    if (place / LAST).is_file():
        state = torch.load(place / LAST, weights_only=True)["state_dict"]
        if not all(held.isfinite().all() for held in state.values()):
            return False
    for file in place.glob("metrics/metrics.json"):
        for row in json.loads(file.read_text()):
            if any(isinstance(v, float) and not math.isfinite(v) for v in row.values()):
                return False
    return True


# Numbers: every key of every callable that a config can name


def put(config: dict, way: tuple, key: str, value: Any) -> dict:
    """A copy of a config with a key set in the section at `way`."""
    config = json.loads(json.dumps(config))
    part = config
    for step in way:
        part = part[step]
    part[key] = value
    return config


LIGHTNINGS = ("lightning_cfg.training.callbacks.", "lightning_cfg.training.loggers.")


def numbers(root: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """(what is odd, does it and says how it ends) of every numeric key and odd number."""
    from test_ranges import kinds_of, numbers_in, reached, wrapped

    bases = all_bases(root, chain(root))
    for path, every in sorted(reached().items()):
        if path.startswith(LIGHTNINGS):
            continue  # whose keys are looked at by Lightning itself
        verb, config, way = bases[path]
        for key, kind in kinds_of(path, every).items():
            for inner, _, _ in numbers_in(kind):
                for value in NUMBERS:
                    asked = put(config, way, key, wrapped(value, inner))
                    yield f"{path}.{key} = {value}", lambda v=verb, a=asked: odd(v, a)


def odd(verb: Callable, config: dict) -> str:
    """How a call with an odd number ends."""
    place = Path("odd")
    shutil.rmtree(place, ignore_errors=True)
    return ended(call(verb, {**config, "run_dir": str(place)}), place)


# Every verb once, each on what the one before it has made


def chain(root: Path) -> dict[str, tuple[Callable, dict]]:
    """{name of the run in `root`: (verb, config)}, in their order."""
    on_pairs = {
        **TRAINING, "data": {"name": "Pairs", "path": str(root / "pairs")},
        "model": {"name": "Flow"}, "learner": {"name": "Refinement", "ema_half_life": [100]},
    }  # fmt: skip
    made = {**GENERATION, "models": {"model": str(root / "base")}, "trajectories": 2}
    scored = {"samples": {"a": str(root / "samples")}, "data": MIXTURE}
    weight = {"name": "GuidanceWeight", "of": str(root / "base")}
    return {
        "base": (fit, TRAINING),
        "pictures": (fit, PICTURES),
        "free": (fit, {**TRAINING, "model": {"name": "GuidanceFree"}}),
        "strength": (fit, {**TRAINING, "model": weight}),
        "judge": (fit, {**TRAINING, **JUDGE}),
        "eye": (fit, {**TRAINING, **EYE}),
        "samples": (generate, made),
        "pairs": (
            pair, {"sources": [str(root / "samples")], "data": MIXTURE, "bank": 20, "k": 2},
        ),
        "flow": (fit, on_pairs),
        "refined": (
            refine,
            {"flow": str(root / "flow"), "samples": str(root / "samples"), "method": "heun"},
        ),
        "table": (
            evaluate, {**scored, "real": 8, "bank": 8, "metrics": ["negative_log_density"]},
        ),
        "encoded": (
            encode,
            {"data": {"name": "ImageFolder", "path": str(root / "colours")}, "decode": TOY},
        ),
        "traced": (trace, {**scored, "classifiers": {"b": "exact"}}),
    }  # fmt: skip


def outputs(run: Path) -> list[str]:
    return sorted(json.loads((run / "manifest.json").read_text())["outputs"])


def same(run: Path, whole: Path) -> bool:
    """Whether two runs hold the same results; checkpoints but for their times."""
    if outputs(run) != outputs(whole):
        return False
    for name in outputs(whole):
        if name.endswith(".ckpt"):
            try:
                assert_same(run / name, whole / name)
            except AssertionError:
                return False
        elif not name.endswith((".png", ".pdf")) and sha256(run / name) != sha256(whole / name):
            return False
    return True


def kills(root: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """A kill at every file operation of every verb, and the same call again."""
    for name, (verb, config) in chain(root).items():
        if name in OTHERS:
            continue
        with pytest.MonkeyPatch.context() as patch:
            dying = Dying(patch)
            shutil.rmtree("counted", ignore_errors=True)
            call(verb, {**config, "run_dir": "counted"})
        for at in range(dying.count):
            yield (
                f"{verb.__name__} {name}, killed at operation {at}",
                lambda v=verb, c=config, n=name, a=at: killed(v, c, root / n, a),
            )
    whole, config = root / "study", {k: v for k, v in STUDY.items() if k != "plan"}
    answer = call(study, {**config, "run_dir": str(whole)})
    assert answer.status == 0, answer
    for at in range(0, 170, 5):  # of 176, two seconds each
        yield (
            f"study, killed at operation {at}",
            lambda a=at: killed(study, config, whole, a, same_study),
        )


def killed(
    verb: Callable,
    config: dict,
    whole: Path,
    at: int,
    same: Callable[[Path, Path], bool] = same,
) -> str:
    """How a run ends that was killed and is started again."""
    shutil.rmtree("parts", ignore_errors=True)
    asked = {**config, "run_dir": "parts"}
    with pytest.MonkeyPatch.context() as patch:
        Dying(patch, at)
        with contextlib.suppress(Killed):
            call(verb, asked)
    end = ended(call(verb, asked), Path("parts"))
    if end != "answered":
        return end
    left = [path for path in Path("parts").rglob("*") if ".tmp" in path.name]
    return "recovered" if same(Path("parts"), whole) and not left else "nonsense"


def same_study(one: Path, other: Path) -> bool:
    """Whether all stages of two studies have made the same; their tables have times and places."""

    def made(run: Path) -> dict[str, str]:
        names = ("samples.safetensors", "metrics.json", "metrics.csv")
        files = [file for file in run.rglob("*") if file.name in names]
        return {str(file.relative_to(run)): sha256(file) for file in files}

    return made(one) == made(other) != {} and (one / "report.md").is_file()


FLIPS = 12  # in each file


def flips(root: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """A bit of every output of every verb, and the same call again."""
    for name, (verb, config) in chain(root).items():
        if name in OTHERS:
            continue
        for file in (*outputs(root / name), "manifest.json", "identity.json"):
            for i in range(FLIPS):
                yield (
                    f"{verb.__name__} {name}, {file}, bit at {i}/{FLIPS}",
                    lambda v=verb, c=config, n=name, f=file, i=i: flipped(v, c, root / n, f, i),
                )


def flipped(verb: Callable, config: dict, whole: Path, file: str, i: int) -> str:
    """How a finished run ends that has a bit flipped in a file, and is started again."""
    place = Path("flipped")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    content = bytearray((place / file).read_bytes())
    content[i * len(content) // FLIPS] ^= 4
    (place / file).write_bytes(content)
    answer = call(verb, {**config, "run_dir": str(place)})
    if answer.status == 2 and answer.one_line:
        unchanged = (place / file).read_bytes() == bytes(content)
        return "refused" if unchanged else "nonsense"  # and nothing was made of it
    end = ended(answer, place)
    if end != "answered":
        return end
    if file == "manifest.json" and "damaged" not in answer.out + answer.err:
        return "answered" if same_files(place, whole) else "nonsense"  # of what it says beside
    if file == "identity.json":
        return "answered" if same(place, whole) else "nonsense"
    return "made again" if same(place, whole) else "nonsense"


def same_files(place: Path, whole: Path) -> bool:
    return all(
        sha256(place / name) == sha256(whole / name)
        for name in outputs(whole)
        if not name.endswith((".ckpt", ".png", ".pdf"))
    )


KINDS = {"numbers": numbers, "kills": kills, "flips": flips}


def prepared(root: Path) -> None:
    """The runs that are damaged, or read, in `root`."""
    root.mkdir(exist_ok=True)
    vae(root)
    for name, (verb, config) in chain(root).items():
        answer = call(verb, {**config, "run_dir": str(root / name)})
        assert answer.status == 0, answer


def whole_run(kinds: dict[str, list]) -> tuple[dict[str, Counter], list[str]]:
    """The ends of all faults by their kind, and the bad ones by name."""
    counts, bad = {}, []
    for kind, points in kinds.items():
        counts[kind] = Counter()
        for what, work in points:
            end = work()
            counts[kind][end] += 1
            if end not in GOOD:
                bad.append(f"{kind}: {what}: {end}")
                print(bad[-1], file=sys.__stderr__, flush=True)
    return counts, bad


def as_table(counts: dict[str, Counter]) -> str:
    lines = [f"| | {' | '.join(counts)} |", f"|---|{'---|' * len(counts)}"]
    for end, means in ENDS.items():
        cells = [str(count[end]) for count in counts.values()]
        lines.append(f"| {end}{': ' + means if means else ''} | {' | '.join(cells)} |")
    total = [str(sum(count.values())) for count in counts.values()]
    return "\n".join([*lines, f"| all | {' | '.join(total)} |"])


def run_all() -> tuple[dict[str, Counter], list[str]]:
    """All faults, in an empty folder."""
    torch.set_num_threads(1)
    os.environ["LIGHTNING_CFG_CACHE"] = str(Path("cache").absolute())
    root = Path("whole").absolute()
    prepared(root)
    return whole_run({kind: list(points(root)) for kind, points in KINDS.items()})


if __name__ == "__main__":
    began, here = time.monotonic(), Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        table, wrong = run_all()
    text = here.read_text()
    start, end = text.index("<!-- table -->"), text.index("<!-- end -->")
    minutes = f"{(time.monotonic() - began) / 60:.0f} minutes on one core."
    inside = "\n\n".join([as_table(table), minutes, *(f"- {line}" for line in wrong)])
    here.write_text(f"{text[:start]}<!-- table -->\n{inside}\n{text[end:]}")
