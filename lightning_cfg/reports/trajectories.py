"""What guidance did to the trajectories, in claims, tables and sentences of a study's report.

The claims are those of Zhao & Schwing (2025, sec. 3): guidance bends the trajectories of the
conditional model and pushes them away from the decision boundary, the more the larger the scale,
and which classifier guides matters more than which denoiser is guided.
"""

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.reports.claims import averaged, show
from lightning_cfg.runs.tensors import load_tensors

LEARNED, EXACT = "learned", "exact"
SCORES = ("wasserstein", "energy_distance", "frechet", "fd_classifier")  # the first that is there
COLUMNS = {  # of a row of `trace`: its head in the report
    "distance": "distance to {}'s boundary",
    "closest": "closest to it",
    "wrong_time": "time beyond it",
    "wrong_end": "ends beyond it",
    "confidence": "p(class) at the end",
}
MEANING = (
    "Trajectories are seen in the plane of t/T of the DDPM and u = x / sqrt(1 + sigma²). "
    "`straightness` is arc over chord there: 1 is a straight line. `distance` is the signed "
    "distance in u to the decision boundary at each noise level, averaged over t/T: above 0 on the "
    "class's own side, to first order (margin over its gradient) in more than one dimension. "
    "`closest` is the smallest distance at t/T ≤ 1/2, 0 for a trajectory that crosses the boundary "
    "there. Time beyond it is the share of t/T on the wrong side. `own` is the classifier that "
    "guides."
)


@dataclass(frozen=True)
class Trend:
    """Whether a number rises with the guidance scale, for one method on one data set."""

    about: str
    case: str
    method: str
    holds: bool
    numbers: str

    def __str__(self) -> str:
        where = f"{self.case}, " if self.case else ""
        return f"{where}{self.method}: {self.numbers}"


def trends(case: Any) -> list[Trend]:
    """The paper's two claims about every method with two scales or more.

    Its trajectories are pushed away from its own classifier's boundary (without one: from that of
    the first classifier traced), the more the larger the scale; and they are bent the more.
    """
    seen = by_classifier(case)
    out = []
    for method in dict.fromkeys(method for method, _ in case.traced):
        scales = sorted(scale for name, scale in case.traced if name == method)
        if len(scales) < 2:
            continue
        guide = case.traced[method, scales[0]].guide
        for column, about in (
            ("distance", f"distance to the boundary of {guide}"),
            ("straightness", "arc over chord"),
        ):
            values = [seen[method, scale, guide][column] for scale in scales]
            if None not in values:
                rises = all(a < b for a, b in pairwise(values))
                numbers = " → ".join(show(column, value) for value in values)
                out.append(Trend(about, case.name, method, rises, numbers))
    return out


def told(case: Any, methods: dict[str, dict]) -> list[str]:
    """The section of one data set, in paragraphs of markdown.

    methods  of the study's config: {name: {models, guidance}}
    """
    found = trends(case)
    no = [f"{trend.method}, {trend.about}: {trend.numbers}" for trend in found if not trend.holds]
    parts = [_trend_table(case, found)]
    if no:
        parts.append(f"{len(found) - len(no)} of {len(found)} hold. **At odds with the paper:**")
        parts.append("\n".join(f"- {line}" for line in no))
    elif found:
        parts.append(f"All {len(found)} hold: every method's trajectories are pushed away from the "
                     "boundary and bent, the more the larger the scale.")  # fmt: skip
    parts += _at_scale_1(case)
    parts += _side_by_side(case, methods)
    return [*parts, "Everything measured, classes averaged:", _panel_table(case)]


def by_classifier(case: Any) -> dict[tuple, dict]:
    """{(method, scale, classifier): numbers}, classes averaged weighted by n; None stays None."""
    out = {}
    for (method, scale), traced in case.traced.items():
        for name in dict.fromkeys(row["classifier"] for row in traced.rows):
            rows = [row for row in traced.rows if row["classifier"] == name]
            total = sum(row["n"] for row in rows)
            out[method, scale, name] = {
                column: None
                if any(row[column] is None for row in rows)
                else sum(row["n"] * row[column] for row in rows) / total
                for column in ("straightness", *COLUMNS)
            }
    return out


def displacement(case: Any, a: str, b: str, scale: float) -> Tensor | None:
    """|x_a - x_b| of two methods' samples of the same seeds, (n,).

    None if the seeds are others, or one of the two was not tried at this scale.
    """
    if any((method, scale, "before", "") not in case.sets for method in (a, b)):
        return None
    one, other = (
        load_tensors(case.sets[method, scale, "before", ""], "x", "c", "seed") for method in (a, b)
    )
    same = all(torch.equal(one[key], other[key]) for key in ("c", "seed"))
    return (one["x"] - other["x"]).double().flatten(1).norm(dim=1) if same else None


def _at_scale_1(case: Any) -> list[str]:
    seen = {key[0]: value["straightness"] for key, value in by_classifier(case).items()
            if key[1] == 1}  # fmt: skip
    if not seen:
        return []
    values = ", ".join(f"{method} {show('', value)}" for method, value in seen.items())
    return [f"Arc over chord at scale 1, where the paper has the conditional model nearly straight "
            f"and classifier guidance distorted already: {values}."]  # fmt: skip


def _trend_table(case: Any, found: list[Trend]) -> str:
    scales = ", ".join(f"{scale:g}" for scale in sorted({scale for _, scale in case.traced}))
    body = {}
    for trend in found:
        body.setdefault(trend.method, []).append(trend)
    lines = [f"| scales {scales} | boundary of | distance to it rises | arc over chord rises |",
             "| :-- | :-- | --: | --: |"]  # fmt: skip
    guides = {method: traced.guide for (method, _), traced in case.traced.items()}
    for method, row in body.items():
        cells = {trend.about.partition(" ")[0]: _verdict(trend) for trend in row}
        away, bent = cells.get("distance", "no boundary"), cells.get("arc", "")
        lines.append(f"| {method} | {guides[method]} | {away} | {bent} |")
    return "\n".join(lines)


def _verdict(trend: Trend) -> str:
    return f"{'yes' if trend.holds else '**NO**'}: {trend.numbers}"


def _panel_table(case: Any) -> str:
    """A row per method and scale: everything that was measured, and the scores of the samples."""
    seen, averages = by_classifier(case), averaged(case.rows)
    names = list(dict.fromkeys(name for *_, name in seen))
    scores = [m for m in (*SCORES, "wrong_class", "outliers") if m in next(iter(averages.values()))]
    columns = [(name, column) for name in names for column in COLUMNS]
    heads = [COLUMNS[column].format(name) for name, column in columns]
    lines = [
        f"| {' | '.join(['method', 'scale', 'straightness', *heads, *scores])} |",
        f"| :-- |{' --: |' * (2 + len(heads) + len(scores))}",
    ]
    for method, scale in case.traced:
        own = [seen.get((method, scale, name), {}).get(column) for name, column in columns]
        straight = next(v["straightness"] for k, v in seen.items() if k[:2] == (method, scale))
        score = averages[method, scale, "before", ""]
        cells = [method, f"{scale:g}", show("", straight)]
        cells += [_cell(column, value) for (_, column), value in zip(columns, own, strict=True)]
        cells += [show(name, score.get(name)) for name in scores]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(column: str, value: float | None) -> str:
    if value is not None and column.startswith("wrong"):
        return f"{100 * value:.3g} %"
    return show("", value)


def _side_by_side(case: Any, methods: dict[str, dict]) -> list[str]:
    """The same guidance on the exact and on a learned denoiser, beside CFG on the same one."""
    kinds: dict[tuple, dict[str, str]] = {}  # (guidance, classifier): {exact or learned: method}
    for name, section in methods.items():
        kind = EXACT if section["models"]["model"] == "exact" else LEARNED
        what = section["guidance"]["name"], section["models"].get("classifier", "")
        kinds.setdefault(what, {}).setdefault(kind, name)
    plain = kinds.get(("classifier_free", ""), {})
    averages = averaged(case.rows)
    score = next((m for m in SCORES if m in next(iter(averages.values()))), None)
    scales = sorted({scale for _, scale in case.traced})
    if not plain or score is None or not any(len(both) == 2 for both in kinds.values()):
        return []

    head = ["guidance", "scale", f"{score}, exact denoiser", f"{score}, learned denoiser",
            "moved from CFG, exact", "moved from CFG, learned", "exact to learned"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"| :-- |{' --: |' * 6}"]
    largest, beside = None, {}
    for (guidance, classifier), both in kinds.items():
        for scale in scales:
            cells = [f"{guidance}, {classifier}".removesuffix(", "), f"{scale:g}"]
            for kind in (EXACT, LEARNED):
                row = averages.get((both.get(kind), scale, "before", ""), {})
                cells.append(show(score, row.get(score)))
            for kind in (EXACT, LEARNED):
                moved = None
                if guidance != "classifier_free" and kind in both and kind in plain:
                    moved = displacement(case, both[kind], plain[kind], scale)
                cells.append("" if moved is None else show("", moved.mean().item()))
                if moved is None or guidance != "classifier_gradient":
                    continue
                if kind == EXACT and classifier == "exact":
                    largest = max(largest or 0.0, moved.max().item())
                if scale == 1:
                    beside[kind, classifier] = moved.mean().item()
            moved = None if len(both) < 2 else displacement(case, both[EXACT], both[LEARNED], scale)
            cells.append("" if moved is None else show("", moved.mean().item()))
            lines.append(f"| {' | '.join(cells)} |")
    parts = [
        "The same guidance on the exact denoiser and on the learned one. Moved is the mean "
        "distance between samples of the same seeds, in units of the data; CFG at scale 1 is the "
        "plain conditional model.",
        "\n".join(lines),
    ]
    if largest is not None:
        gaps = ", ".join(
            f"{classifier} {show('', beside[kind, classifier])}"
            for kind, classifier in beside
            if kind == LEARNED
        )
        apart = f"by more than {largest:.1e}" if largest else "in any bit of its float32"
        parts.append(
            "With the exact denoiser and the exact posterior classifier guidance is CFG, and at "
            f"scale 1 it is the conditional model: no sample differs {apart}. The identity "
            "behind guidance holds; what differs at scale 1 comes from learned parts and from "
            "classifiers that cannot be right"
            + (f" (mean difference to CFG on the learned denoiser: {gaps})." if gaps else ".")
        )
    return parts + _dominance(case, methods, scales)


def _dominance(case: Any, methods: dict[str, dict], scales: list[float]) -> list[str]:
    """How far a sample moves when only the classifier, or only the denoiser, is another one."""
    moved: dict[str, list[float]] = {"classifier": [], "model": []}
    for a, b in combinations(methods, 2):
        one, other = methods[a], methods[b]
        roles = [
            role
            for role in {**one["models"], **other["models"]}
            if one["models"].get(role) != other["models"].get(role)
        ]
        if one["guidance"] == other["guidance"] and len(roles) == 1 and roles[0] in moved:
            for scale in scales:
                apart = displacement(case, a, b, scale)
                if apart is not None:
                    moved[roles[0]].append(apart.mean().item())
    if not all(moved.values()):
        return []
    mean = {role: sum(values) / len(values) for role, values in moved.items()}
    ratio = mean["classifier"] / mean["model"] if mean["model"] else float("inf")
    dominates = "dominates" if ratio > 1 else "does **NOT** dominate"
    return [
        f"Another classifier with everything else the same moves a sample by "
        f"{show('', mean['classifier'])} on average ({len(moved['classifier'])} comparisons), "
        f"another denoiser by {show('', mean['model'])} ({len(moved['model'])}): the classifier "
        f"{dominates} the result, {ratio:.3g} : 1."
    ]
