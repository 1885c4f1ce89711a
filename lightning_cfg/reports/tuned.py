"""The report's part on methods that were tuned: their settings, and what each reaches so."""

from typing import Any

from lightning_cfg.evaluation.tables import in_markdown, markdown_table
from lightning_cfg.metrics.meaning import meaning, show
from lightning_cfg.reports import comparison
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.rows import ALIKE, Rows, bold

AS_WRITTEN = "as written"


def sections(case: Case, config: dict) -> list[str]:
    """Markdown: methods by what they reach at matched distance, then the setting of each."""
    if not case.tuned:
        return []
    tuning = config["tuning"]
    reference = tuning["reference"] or next(iter(config["methods"]))
    d, e = (next(iter(case.tuned.values()))[key] for key in ("distance", "error"))
    before = case.averages.where(stage="before").having(d, e)
    spent = f"about {tuning['evaluations']} evaluations a sample, all networks together, "
    parts = [
        f"**At matched distance**, best first: the best `{e}` of each method, before refinement, "
        f"where its `{d}` is no larger than that of {reference} at the scale in brackets; along "
        "the line through its own scales, "
        + ("each seed by itself; " if case.averages.over_seeds else "")
        + "empty where it never is so near. Each has the setting that was chosen for it, and "
        + (spent if tuning["evaluations"] is not None else "its own number of steps ")
        + "where it is guided (`nfe`: at its largest scale). The best of a column is bold"
        + (f", {ALIKE}." if case.averages.over_seeds else "."),
        _matched(before, at_tuned_distance(case, config), d, e),
        f"**Settings**: tried on {tuning['samples']:,} samples a scale of networks, samples and "
        f"real points of seed {tuning['seed']}, which nothing else here is of: each method as it "
        f"is written, and others drawn from its ranges, {tuning['settings']} in all. Chosen is the "
        f"one of the smallest mean `{e}` at the distances of {reference} at scales "
        f"{', '.join(f'{scale:g}' for scale in tuning['at'])}; the last columns are what it had "
        "there, the smallest of many, and so better than it is.",
        _settings(case, tuning["at"], d, e),
    ]
    return parts


def at_tuned_distance(case: Case, config: dict) -> list[tuple[float, Any, dict[str, Any]]]:
    """For each scale of `tuning.at` it, the reference's distance, {method: its error within that}.

    As `comparison.at_matched_distance`, of methods that were tuned.
    """
    tuning = config["tuning"]
    reference = tuning["reference"] or next(iter(config["methods"]))
    d, e = (next(iter(case.tuned.values()))[key] for key in ("distance", "error"))
    methods = sorted(config["methods"], key=lambda method: method != reference)
    of_scale = {
        found[0]: found
        for found in comparison.at_matched_distance(case.averages.having(d, e), methods, d, e)
    }
    return [of_scale[scale] for scale in tuning["at"]]


def _matched(before: Rows, matched: list[tuple[float, Any, dict[str, Any]]], d: str, e: str) -> str:
    """A row per method, the best one first."""
    limits = [(scale, limit) for scale, limit, _ in matched]
    methods = list(matched[0][2])
    found = {m: [values[m] for _, _, values in matched] for m in methods}
    sign = -1 if meaning(e).better == "higher" else 1

    def place(method: str) -> tuple[int, float]:
        known = [sign * float(value) for value in found[method] if value is not None]
        return len(limits) - len(known), sum(known)

    ordered = sorted(methods, key=place)
    columns = [ordered, [_spent(before, method) for method in ordered]]
    for i in range(len(limits)):
        values = [found[method][i] for method in ordered]
        top = min((v for v in values if v is not None), key=lambda v: sign * v, default=None)
        columns.append([bold(e, value, top) for value in values])
    heads = [f"≤ {show(d, limit)} ({scale:g})" for scale, limit in limits]
    rows = [list(line) for line in zip(*columns, strict=True)]
    return markdown_table(["method", "nfe", *heads], rows)


def _spent(before: Rows, method: str) -> str:
    rows = before.where(method=method)
    return show("nfe", rows[max(rows, key=lambda cell: cell.scale or 0)]["nfe"])


def _settings(case: Case, at: list[float], d: str, e: str) -> str:
    """A row per method."""
    rows = []
    for method, choice in case.tuned.items():
        steps = "" if choice["steps"] is None else str(choice["steps"])
        told = in_markdown(choice["told"] or AS_WRITTEN)
        had = [show(e, value) for _, value in choice["reached"]]
        rows.append([method, told, str(choice["of"]), steps, show("nfe", choice["nfe"]), *had])
    limits = [limit for limit, _ in next(iter(case.tuned.values()))["reached"]]
    heads = [f"≤ {show(d, limit)} ({scale:g})" for scale, limit in zip(at, limits, strict=True)]
    return markdown_table(["method", "setting", "of", "steps", "nfe", *heads], rows)
