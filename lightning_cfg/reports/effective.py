"""The report's part on effective guidance scales: what a method gains over CFG at its own."""

from itertools import pairwise
from typing import Any

from lightning_cfg.evaluation.tables import in_markdown, markdown_table
from lightning_cfg.metrics.meaning import show
from lightning_cfg.metrics.over_seeds import difference, each, positive
from lightning_cfg.reports.comparison import CLASS, first
from lightning_cfg.reports.rows import Rows, loss

EFFECTIVE = "effective_scale"
DISTANCE = ("fid", "fd_dinov2", "fd", "energy_distance", "frechet")
MEANING = (
    "`effective` is the scale of CFG that does most nearly what a method does, averaged along the "
    "path (after Xie et al. 2026). Beside each number stands that of CFG on the same network at "
    "this scale, interpolated between its own scales and empty beyond them, and the method's gain: "
    "how much better it is, bold where that is above 0{}. A method without a gain is CFG under "
    "another name for its scale."
)


def meaning(*, several: bool) -> str:
    """What the tables show; of several seeds how it is judged too."""
    return MEANING.format(" by the 95 % interval over the seeds, paired" if several else "")


def sections(averages: Rows, config: dict, metrics: list[str]) -> list[str]:
    """Markdown: a row per method and scale whose effective scale was measured, before refinement.

    Nothing where none was, or where no CFG stands beside it.
    """
    shown = [m for m in (first(metrics, CLASS), first(metrics, DISTANCE)) if m is not None]
    before, order = averages.where(stage="before"), list(config["methods"])
    measured, body = before.having(EFFECTIVE), []
    for cell in sorted(measured, key=lambda cell: (order.index(cell.method), cell.scale)):
        row = measured[cell]
        cfg = beside(cell.method, config["methods"])
        if cfg is None:
            continue
        line = [in_markdown(cell.method), show("scale", cell.scale)]
        line.append(show(EFFECTIVE, row[EFFECTIVE]))
        for metric in shown:
            there = at(before.where(method=cfg).line(metric), row[EFFECTIVE])
            line += _gain(metric, row.get(metric), there)
        body.append(line)
    if not body or not shown:
        return []
    heads = [head for metric in shown for head in (f"`{metric}`", "CFG there", "gain")]
    return [markdown_table(["method", "scale", "effective", *heads], body)]


def beside(method: str, methods: dict[str, dict]) -> str | None:
    """The study's plain CFG on the same network, by name; None of CFG itself, or without one."""
    model = methods[method]["models"].get("model")
    for name, section in methods.items():
        guidance = section["guidance"]
        plain = guidance["name"] == "classifier_free" and not isinstance(
            guidance.get("scale"), dict
        )
        if plain and section["models"].get("model") == model:
            return None if name == method else name
    return None


def at(line: list[tuple[float, Any]], scale: float) -> Any:
    """A line of (scale, number) at another scale, straight between neighbours, seed by seed.

    None beyond its ends for any seed.
    """
    scales = [s for s, _ in line]

    def one(w: float, *values: float) -> float:
        for (a, p), (b, q) in pairwise(zip(scales, values, strict=True)):
            if a <= w <= b:
                return p + (q - p) * (w - a) / (b - a)
        return float("nan")

    found = each(one, scale, *(value for _, value in line)) if line else float("nan")
    return None if found != found else found


def _gain(metric: str, own: Any, cfg: Any) -> list[str]:
    if own is None or cfg is None:
        return [show(metric, own), "", ""]
    gain = difference(loss(metric, cfg, None), loss(metric, own, None))
    text = show(metric, gain)
    return [show(metric, own), show(metric, cfg), f"**{text}**" if positive(gain) else text]
