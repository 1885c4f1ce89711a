"""What was done in a study, how long it took and on what, in sentences."""

import os
import platform
import re
from pathlib import Path

import torch

from lightning_cfg.evaluation.tables import in_markdown
from lightning_cfg.reports.case import Case
from lightning_cfg.runs.manifests import read_manifest


def done(config: dict, cases: list[Case]) -> str:
    """What was done, on what."""
    data = "; ".join(
        f"{case.name + ': ' if case.name else ''}`{section['name']}`, "
        f"{case.data_set.num_classes} classes, shape {tuple(case.data_set.shape)}"
        + in_markdown(f", {case.data_set.formula}").removesuffix(",")
        for case, section in zip(cases, config["cases"].values() or [config["data"]], strict=True)
    )
    methods = "; ".join(
        f"{name}, guidance `{section['guidance']['name']}` with "
        + ", ".join(f"{role} {in_markdown(path)}" for role, path in section["models"].items())
        for name, section in config["methods"].items()
    )
    text = f"Data: {data}. Methods: {methods}. "
    grids = {name: section["scales"] for name, section in config["methods"].items()}
    scales = sorted({scale for own in grids.values() for scale in own})
    shared, own = (list(config["flows"].get(kind, [])) for kind in ("all", "dedicated"))
    flows = []
    if shared:
        unseen = [scale for scale in scales if scale not in shared]
        never = f", and it never saw {_scales(unseen)}" if unseen else ""
        flows.append(f"one for all scales (its samples have scales {_scales(shared)}{never})")
    if own:
        flows.append(f"one of its own for each of the scales {_scales(own)}")
    fresh = f"{config['samples']:,} fresh samples at each of the scales "
    if len({tuple(own) for own in grids.values()}) == 1:
        fresh += _scales(scales)
    else:
        fresh += "; ".join(f"{_scales(own)} ({name})" for name, own in grids.items())
    if flows:
        text += (
            f"For each method, {config['sources']:,} generated samples per flow were paired with "
            f"their {config['pairs'].get('k', 20)} nearest real neighbours, and rectified flows "
            f"trained on the pairs: {'; '.join(flows)}. Then {fresh} were scored before and after "
            "refinement."
        )
    else:
        text += f"For each method, {fresh} were scored."
    return f"{text} {seeds_of(cases[0])}; every setting is in [config.yaml](config.yaml)."


def seeds_of(case: Case) -> str:
    """Seed 0, or Seeds 0, 1, 2."""
    return f"Seed{'s' if len(case.seeds) > 1 else ''} {', '.join(map(str, case.seeds))}"


def spent(directory: Path, stages: list[dict]) -> str:
    """Time, machine and versions; the versions are those that the stages wrote down."""
    verbs = list(dict.fromkeys(stage["verb"] for stage in stages))
    seconds = {v: [stage["seconds"] for stage in stages if stage["verb"] == v] for v in verbs}
    packages: dict[str, set] = {}
    for stage in stages:
        manifest = read_manifest(directory / stage["directory"])
        for name, version in manifest.get("packages", {}).items():
            packages.setdefault(name, set()).add(version)
    reused = sum(bool(stage["reused"]) for stage in stages)
    names = re.findall(r"model name\s*:\s*(.+)", _text("/proc/cpuinfo")) or [platform.machine()]
    machine = f"{os.cpu_count()} CPUs ({names[0]})"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    text = f"Time of all {len(stages)} stages: {_time(sum(sum(s) for s in seconds.values()))}"
    if reused:
        text += f", {reused} of them taken over from earlier calls"
    each = ", ".join(f"{verb} {_time(sum(s))} ({len(s)} x)" for verb, s in seconds.items())
    text += f" ({each}). " if each else ". "
    versions = ", ".join(f"{n} {' and '.join(sorted(v))}" for n, v in packages.items())
    text += f"Machine: {machine}, {platform.system()}."
    return text + (f" Versions: {versions}." if versions else "")


def _scales(scales: list[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""
