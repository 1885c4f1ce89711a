"""The report's part on a study's flows: every one against the scale, with a paper's rows beside."""

from typing import Any

from lightning_cfg.reports.claims import kind_of, meaning, show
from lightning_cfg.reports.figures import STAGES
from lightning_cfg.reports.markdown import table

# What is told of every flow: how close it comes to the data, and what that may have been bought by.
TOLD = ("fid", "fd_dinov2", "fd", "frechet", "outliers", "recall", "coverage", "near_copies")
NAMES = {flow: name for (_, flow), name in STAGES.items() if flow} | {"": "before"}


def sections(averages: dict[tuple, dict], config: dict, metrics: list[str]) -> list[str]:
    """Markdown: what the variants change, and a table per method and metric, scales across.

    averages  {(method, scale, stage, flow): {nfe, n, metrics}}
    The best of a scale is bold. Rows of a paper stand below ours; nothing where a study has neither
    variants nor published numbers.
    """
    if not config["variants"] and not config["published"]:
        return []
    parts = []
    if config["variants"]:
        parts.append(
            "The study's own recipe, which is the paper's, and what each variant changes of it:"
        )
        changes = (f"- {name}: `{dotted(change)}`" for name, change in config["variants"].items())
        parts.append("\n".join(changes))
    parts.append(
        "`evaluations` are those of the flow, per sample, averaged over the scales. The best of "
        "ours at each scale is bold, samples before refinement among them."
    )
    for method in config["methods"]:
        for metric in (m for m in metrics if kind_of(m) in TOLD):
            parts += _table(method, metric, averages, config)
    return parts


def _table(method: str, metric: str, averages: dict[tuple, dict], config: dict) -> list[str]:
    better, _ = meaning(metric)
    own = {key: row for key, row in averages.items() if key[0] == method and metric in row}
    first = "_vs_" not in metric  # a paper's number is against the first reference
    papers = [
        section
        for section in config["published"]
        if section["method"] in (method, None)
        and (section["metric"] == metric or (section["metric"] == kind_of(metric) and first))
    ]
    known = {flow for section in papers for flow in section["rows"]}
    scales = sorted(
        {key[1] for key in own}
        | {float(s) for section in papers for row in section["rows"].values() for s in row}
    )
    flows = ["", *(key for key in ("dedicated", "all", *config["variants"]))]
    flows = [f for f in flows if any(key[3] == f for key in own) or (f or "before") in known]
    real = averages.get(("real", None, "real", ""), {}).get(metric)
    floor = f" (fresh real draw: {show(metric, real)})" if real is not None else ""
    best = {scale: _best(better, [r[metric] for k, r in own.items() if k[1] == scale], real)
            for scale in scales}  # fmt: skip
    body = []
    for flow in flows:
        rows = {key[1]: row for key, row in own.items() if key[3] == flow}
        before = {scale: own[method, scale, "before", ""]["nfe"] for scale in rows}
        spent = [row["nfe"] - before[scale] for scale, row in rows.items()]
        cells = [f"{sum(spent) / len(spent):.0f}" if flow and spent else ""]
        for scale in scales:
            value = rows.get(scale, {}).get(metric)
            text = show(metric, value)
            cells.append(f"**{text}**" if value is not None and value == best[scale] else text)
        body.append([NAMES.get(flow, flow), *cells])
        for section in papers:
            row = section["rows"].get(flow or "before", {})
            numbers = {float(scale): value for scale, value in row.items()}
            if numbers:
                cells = [show(section["metric"], numbers.get(scale)) for scale in scales]
                body.append([f"· {section['source']}", "", *cells])
    head = ["samples", "evaluations", *(f"scale {scale:g}" for scale in scales)]
    return [f"**{method}: `{metric}`**{floor}", table(head, body)] if body else []


def _best(better: str | None, values: list[float], real: float | None) -> float | None:
    """The best of the values; None where no way is better."""
    if not values or better is None or (better == "real" and real is None):
        return None
    if better == "real":
        return min(values, key=lambda value: abs(value - real))
    return min(values) if better == "lower" else max(values)


def dotted(change: dict) -> str:
    """{pairs: {k: 40}} as "pairs.k: 40"; a section with a name in short."""
    change = {key: value for key, value in change.items() if value is not None}
    return ", ".join(f"{path}: {value}" for path, value in _leaves(change, "")) or "nothing"


def _leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and "name" not in value:
        return [leaf for key, v in value.items() for leaf in _leaves(v, f"{path}.{key}".strip("."))]
    if isinstance(value, dict):
        value = " ".join([value["name"], *(f"{k}={v}" for k, v in value.items() if k != "name")])
    return [(path, value)]
