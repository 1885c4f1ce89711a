"""What guidance did to the trajectories, in claims, tables and sentences of a study's report.

The claims are those of Zhao & Schwing (2025, sec. 3): guidance bends the trajectories of the
conditional model and pushes them away from the decision boundary, the more the larger the scale,
and which classifier guides matters more than which denoiser is guided.
"""

from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from lightning_cfg.evaluation.tables import markdown_table
from lightning_cfg.metrics.meaning import digits, percent, show, written
from lightning_cfg.metrics.over_seeds import difference, over, positive
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.claims import verdict
from lightning_cfg.reports.rows import Cell, mean
from lightning_cfg.runs.tensors import load_tensors

KINDS = EXACT, LEARNED = "exact", "learned"  # denoisers
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

ROUGH = 5.0  # arc over chord from which it is the noise that a sampler adds all the way
FIRST = "Over the seeds are the numbers of trajectories; what samples moved by is of seed {}."


@dataclass(frozen=True)
class Trend:
    """Whether a number rises with the guidance scale, for one method on one data set."""

    about: str
    case: str
    method: str
    holds: bool | None  # None: no difference, over seeds
    numbers: str

    def __str__(self) -> str:
        where = f"{self.case}, " if self.case else ""
        return f"{where}{self.method}: {self.numbers}"


def trends(case: Case) -> list[Trend]:
    """The paper's two claims about every method with two scales or more.

    Its trajectories are pushed away from its own classifier's boundary (without one: from that of
    the first classifier traced), the more the larger the scale; and they are bent the more, which
    is not asked of those to which the sampler adds noise all the way.
    """
    seen, out = by_classifier(case), []
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
            rough = column == "straightness" and None not in values and min(values) > ROUGH
            if None not in values and not rough:
                rises = {positive(difference(b, a)) for a, b in pairwise(values)}
                holds = False if False in rises else None if None in rises else True
                numbers = " → ".join(written(value, digits) for value in values)
                out.append(Trend(about, case.name, method, holds, numbers))
    return out


def told(case: Case, config: dict) -> list[str]:
    """The section of one data set, in paragraphs of markdown; nothing without trajectories.

    config  the study's: its methods and fits
    """
    if not case.traced:
        return []
    found = trends(case)
    no, neither = (
        [f"{t.method}, {t.about}: {t.numbers}" for t in found if t.holds is holds]
        for holds in (False, None)
    )
    parts = [_trend_table(case, found)]
    hold = f"{len(found) - len(no) - len(neither)} of {len(found)} hold."
    if no:
        parts.append(f"{hold} **At odds with the paper:**")
        parts.append("\n".join(f"- {line}" for line in no))
    if neither:
        parts.append(f"{'' if no else f'{hold} '}Neither over the seeds, by paired differences:")
        parts.append("\n".join(f"- {line}" for line in neither))
    if found and not no and not neither:
        parts.append(
            f"All {len(found)} hold: every method's trajectories are pushed away from the "
            "boundary, and bent where no noise is added on the way, the more the larger the scale."
        )
    parts += _at_scale_1(case)
    parts += _side_by_side(case, config)
    return [*parts, "Everything measured, classes averaged:", _panel_table(case)]


def by_classifier(case: Case) -> dict[tuple, dict]:
    """{(method, scale, classifier): numbers}, classes averaged weighted by n; None stays None."""
    by_seed = case.traced_by or {case.seeds[0]: case.traced}
    return {
        (method, scale, name): {
            column: over(
                {seed: mean(own[method, scale].of(name), column) for seed, own in by_seed.items()}
            )
            for column in ("straightness", *COLUMNS)
        }
        for (method, scale), traced in case.traced.items()
        for name in dict.fromkeys(row["classifier"] for row in traced.rows)
    }


def displacement(case: Case, a: str, b: str, scale: float) -> Tensor | None:
    """|x_a - x_b| of two methods' samples of the same seeds, (n,).

    None if the seeds are others, or one of the two was not tried at this scale.
    """
    cells = [Cell(method, scale, "before", "") for method in (a, b)]
    if any(cell not in case.sets for cell in cells):
        return None
    one, other = (load_tensors(case.sets[cell], "x", "c", "seed") for cell in cells)
    same = all(torch.equal(one[key], other[key]) for key in ("c", "seed"))
    return (one["x"] - other["x"]).double().flatten(1).norm(dim=1) if same else None


def _at_scale_1(case: Case) -> list[str]:
    seen = {
        method: numbers["straightness"]
        for (method, scale, _), numbers in by_classifier(case).items()
        if scale == 1
    }
    if not seen:
        return []
    values = ", ".join(f"{method} {written(value, digits)}" for method, value in seen.items())
    return [
        "Arc over chord at scale 1, where the paper has the conditional model nearly straight and "
        f"classifier guidance distorted already: {values}."
    ]


def _trend_table(case: Case, found: list[Trend]) -> str:
    scales = ", ".join(f"{scale:g}" for scale in sorted({scale for _, scale in case.traced}))
    head = [f"scales {scales}", "boundary of", "distance to it rises", "arc over chord rises"]
    guides = {method: traced.guide for (method, _), traced in case.traced.items()}
    cells: dict[str, dict[str, str]] = {}
    for trend in found:
        cells.setdefault(trend.method, {})[trend.about.partition(" ")[0]] = verdict(trend)
    body = [
        [method, guides[method], row.get("distance", "no boundary"), row.get("arc", "noise's")]
        for method, row in cells.items()
    ]
    return markdown_table(head, body, left=2)


def _panel_table(case: Case) -> str:
    """A row per method and scale: everything that was measured, and the scores of the samples."""
    seen, averages = by_classifier(case), case.averages
    names = list(dict.fromkeys(name for *_, name in seen))
    scores = [m for m in (*SCORES, "wrong_class", "outliers") if m in next(iter(averages.values()))]
    columns = [(name, column) for name in names for column in COLUMNS]
    heads = [COLUMNS[column].format(name) for name, column in columns]
    body = []
    for method, scale in case.traced:
        own = {name: seen.get((method, scale, name), {}) for name in names}
        straight = next(numbers["straightness"] for numbers in own.values() if numbers)
        cells = [method, f"{scale:g}", written(straight, digits)]
        cells += [_cell(column, own[name].get(column)) for name, column in columns]
        score = averages[Cell(method, scale, "before", "")]
        body.append(cells + [show(name, score.get(name)) for name in scores])
    return markdown_table(["method", "scale", "straightness", *heads, *scores], body)


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    return written(value, percent if column.startswith("wrong") else digits)


def _side_by_side(case: Case, config: dict) -> list[str]:
    """The same guidance on the exact and on a learned denoiser, beside CFG on the same one."""
    methods = config["methods"]
    kinds = _by_guidance(methods)
    plain, averages = kinds.get(("classifier_free", ""), {}), case.averages
    score = next((m for m in SCORES if m in next(iter(averages.values()))), None)
    scales = sorted({scale for _, scale in case.traced})
    if not plain or score is None or not any(len(both) == 2 for both in kinds.values()):
        return []
    body = []
    gaps: dict[tuple, Tensor] = {}  # of classifier guidance to CFG, by denoiser, classifier, scale
    for (guidance, classifier), both in kinds.items():
        for scale in scales:
            moved = {
                kind: displacement(case, both[kind], plain[kind], scale)
                for kind in both
                if kind in plain and guidance != "classifier_free"
            }
            if guidance == "classifier_gradient":
                gaps |= {(k, classifier, scale): m for k, m in moved.items() if m is not None}
            apart = displacement(case, both.get(EXACT, ""), both.get(LEARNED, ""), scale)
            rows = [averages.get(Cell(both.get(kind, ""), scale, "before", ""), {})
                    for kind in KINDS]  # fmt: skip
            body.append([
                f"{guidance}, {classifier}".removesuffix(", "),
                f"{scale:g}",
                *(show(score, row.get(score)) for row in rows),
                *(_mean(distance) for distance in (*map(moved.get, KINDS), apart)),
            ])  # fmt: skip
    head = ["guidance", "scale", f"{score}, exact denoiser", f"{score}, learned denoiser",
            "moved from CFG, exact", "moved from CFG, learned", "exact to learned"]  # fmt: skip
    return [
        "The same guidance on the exact denoiser and on the learned one. Moved is the mean "
        "distance between samples of the same seeds, in units of the data; CFG at scale 1 is the "
        "plain conditional model.",
        markdown_table(head, body),
        *_identity(gaps),
        *dominance(case, methods, scales, wrong_by_construction(config["fits"])),
    ]


def _by_guidance(methods: dict[str, dict]) -> dict[tuple[str, str], dict[str, str]]:
    """{(guidance, classifier): {exact or learned denoiser: the first such method}}."""
    kinds: dict[tuple[str, str], dict[str, str]] = {}
    for name, section in methods.items():
        kind = EXACT if section["models"]["model"] == "exact" else LEARNED
        what = section["guidance"]["name"], section["models"].get("classifier", "")
        kinds.setdefault(what, {}).setdefault(kind, name)
    return kinds


def _mean(distance: Tensor | None) -> str:
    return "" if distance is None else digits(distance.mean().item())


def _identity(gaps: dict[tuple, Tensor]) -> list[str]:
    """Whether classifier guidance with nothing learned is CFG, and what learned parts change."""
    exact = [gap.max().item() for (kind, by, _), gap in gaps.items() if kind == by == EXACT]
    if not exact:
        return []
    largest = max(exact)
    learned = ", ".join(
        f"{classifier} {_mean(gap)}"
        for (kind, classifier, scale), gap in gaps.items()
        if kind == LEARNED and scale == 1
    )
    apart = f"by more than {largest:.1e}" if largest else "in any bit of its float32"
    return [
        "With the exact denoiser and the exact posterior classifier guidance is CFG, and at "
        f"scale 1 it is the conditional model: no sample differs {apart}. The identity behind "
        "guidance holds; what differs at scale 1 comes from learned parts and from classifiers "
        "that cannot be right"
        + (f" (mean difference to CFG on the learned denoiser: {learned})." if learned else ".")
    ]


def wrong_by_construction(fits: dict[str, dict]) -> list[str]:
    """Classifiers that cannot be right: linear alike at every noise level, or taught wrongly."""
    return [
        name
        for name, fit in fits.items()
        if fit["net"]["name"] == "Linear" or fit["model"]["name"] == "MisledClassifier"
    ]


def dominance(
    case: Case, methods: dict[str, dict], scales: list[float], wrong: list[str]
) -> list[str]:
    """How far a sample moves when only the classifier, or only the denoiser, is another one.

    wrong  classifiers that cannot be right, without which it is said again
    """
    moved: dict[str, list[tuple[float, bool]]] = {"classifier": [], "model": []}
    for a, b in combinations(methods, 2):
        one, other = methods[a]["models"], methods[b]["models"]
        roles = [role for role in {**one, **other} if one.get(role) != other.get(role)]
        alike = "guidance", "generation"  # and with the same sampler
        same = all(methods[a].get(key) == methods[b].get(key) for key in alike)
        if same and len(roles) == 1 and roles[0] in moved:
            right = not {one.get("classifier"), other.get("classifier")} & set(wrong)
            for scale in scales:
                apart = displacement(case, a, b, scale)
                if apart is not None:
                    moved[roles[0]].append((apart.mean().item(), right))
    if not all(moved.values()):
        return []
    told = [
        "Another classifier with everything else the same moves a sample by "
        f"{_said(moved['classifier'])}, another denoiser by {_said(moved['model'])}: "
        f"{_ratio(moved):.3g} : 1."
    ]
    right = {role: [pair for pair in pairs if pair[1]] for role, pairs in moved.items()}
    if right != moved and all(right.values()):
        told[0] += (
            f" Without those that are wrong by construction ({', '.join(wrong)}) it is "
            f"{_said(right['classifier'])} and {_said(right['model'])}, {_ratio(right):.3g} : 1."
        )
    return told


def _said(moved: list[tuple[float, bool]]) -> str:
    mean = sum(distance for distance, _ in moved) / len(moved)
    return f"{digits(mean)} on average ({len(moved)} comparisons)"


def _ratio(moved: dict[str, list[tuple[float, bool]]]) -> float:
    """Of the classifier's mean to the denoiser's."""
    means = [sum(d for d, _ in moved[role]) / len(moved[role]) for role in ("classifier", "model")]
    return means[0] / means[1] if means[1] else float("inf")
