"""What a study claims about refinement, decided by the rows of its table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_cfg.evaluation.tables import markdown_table
from lightning_cfg.metrics.meaning import meaning, show
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.rows import Rows

OF_THE_PAPER = ("all", "dedicated")  # flows by its recipe: no claim is made about variants
PROMISES = {  # metric: what refinement should do to it at every scale above 1
    "outliers": "falls",
    "fd_classifier": "falls",
    "nll_mean": "closer to real",
    "nearest_real": "closer to real",
    "wrong_class": "≤ real + 2 s.e.",
    "class_accuracy": "≥ real - 2 s.e.",
}
ONE_FOR_ALL = {  # metric: what of the flow for all scales is compared with the scale's own
    "outliers": "itself",
    "fd_classifier": "itself",
    "nll_mean": "gap to real",
    "nearest_real": "itself",
}
PAPER = {
    "refinement": "refinement improves the samples whatever the kind of guidance and its scale "
    "(Zhao & Schwing 2025, sec. 4.1)",
    "one for all": "one flow for all scales is on a par with a flow for each, or better (Zhao & "
    "Schwing 2025, app. A)",
}


@dataclass(frozen=True)
class Claim:
    """One claim about one method, scale and flow, and the numbers that decide it."""

    about: str  # "refinement", or "one for all": that flow against the scale's own
    metric: str
    method: str
    scale: float | None
    flow: str  # whose samples: "all" or "dedicated"
    holds: bool | None  # None: not decided
    numbers: str
    real: str = ""  # what a fresh real draw has

    def __str__(self) -> str:
        flow = {"all": "one flow for all", "dedicated": "its own flow"}[self.flow]
        known = f" (real {self.real})" if self.real else ""
        return f"{self.method} at scale {self.scale:g}, {flow}: {self.metric} {self.numbers}{known}"


def check_claims(rows: list[dict]) -> list[Claim]:
    """The claims of a study, decided by its rows, at every scale above 1 (classes averaged).

    Of each flow: outliers and fd_classifier fall; nll_mean and nearest_real come closer to a fresh
    real draw's; wrong_class is at most real's, class_accuracy at least real's, within 2 standard
    errors sqrt(p(1 - p)/n + p'(1 - p')/n'). Of the flow for all scales, where there is one for the
    scale alone: outliers, fd_classifier, nll_mean's gap to real and nearest_real are within 10 %
    of that one's or better. A claim about what was not measured is left out.
    """
    averages = Rows.averaged(rows)
    real, claims = averages.real, []
    for cell, after in averages.where(stage="after").items():
        if (cell.scale or 0) <= 1 or cell.flow not in OF_THE_PAPER:
            continue
        before, what = averages[cell.before], (cell.method, cell.scale, cell.flow)
        own = averages.get(cell._replace(flow="dedicated"), {}) if cell.flow == "all" else {}
        for metric in (m for m in PROMISES if m in before and m in after):
            numbers = f"{show(metric, before[metric])} → {show(metric, after[metric])}"
            holds, floor = (
                _promise_kept(metric, before, after, real),
                show(metric, real.get(metric)),
            )
            claims.append(Claim("refinement", metric, *what, holds, numbers, floor))
        for metric in (m for m in ONE_FOR_ALL if m in own and m in after):
            a, b = after[metric], own[metric]
            if ONE_FOR_ALL[metric] == "gap to real" and metric in real:
                a, b = (abs(value - real[metric]) for value in (a, b))
            numbers, holds = f"{show(metric, a)} vs {show(metric, b)}", _as_good(metric, a, b, real)
            claims.append(Claim("one for all", metric, *what, holds, numbers))
    return [claim for claim in claims if claim.holds is not None]


def summary(claims: Sequence[Any]) -> str:
    """How many claims hold, then a line for each that does not."""
    failed = [claim for claim in claims if not claim.holds]
    lines = [f"{len(claims) - len(failed)} of {len(claims)} claims hold"]
    return "\n".join([*lines, *(f"  NO ({claim.about}): {claim}" for claim in failed)])


def told(case: Case) -> list[str]:
    """Markdown: the claims, a column each, with yes or NO and the numbers; the plain sentences."""
    claims, parts = check_claims(case.rows), []
    for about, heads in (("refinement", PROMISES), ("one for all", ONE_FOR_ALL)):
        found = [claim for claim in claims if claim.about == about]
        if not found:
            continue
        if about == "one for all":
            parts.append(
                "One flow for all scales vs the flow trained for the scale alone: is the first "
                "within 10 % of the second, or better?"
            )
        parts.append(_verdicts(found, heads))
        no = [str(claim) for claim in found if not claim.holds]
        if no:
            parts.append(
                f"{len(found) - len(no)} of {len(found)} checks hold. **At odds with the paper's "
                f"claim** that {PAPER[about]}:"
            )
            parts.append("\n".join(f"- {claim}" for claim in no))
        else:
            parts.append(
                f"All {len(found)} checks hold: nothing in them is at odds with the paper's claim "
                f"that {PAPER[about]}."
            )
    if not parts:
        parts = ["No scale above 1 was refined, so there is no claim to check."]
    losses = worse(case.averages, case.metrics)
    if losses:
        parts.append(
            "Beyond these checks, refinement made worse, by more than 5 % and, where lower is "
            "better, by more than a fresh real draw has (no test of significance):"
        )
        parts.append("\n".join(f"- {line}" for line in losses))
    return parts


def _verdicts(claims: list[Claim], heads: dict[str, str]) -> str:
    """A row per method, scale and flow, a column per metric."""
    found: dict[tuple, dict[str, Claim]] = {}
    for claim in claims:
        found.setdefault((claim.method, claim.scale, claim.flow), {})[claim.metric] = claim
    columns = [m for m in heads if any(m in row for row in found.values())]
    floors = {c.metric: f" (real {c.real})" for c in claims if c.real}
    titles = [f"{m} {heads[m]}".removesuffix(" itself") + floors.get(m, "") for m in columns]
    body = [
        [method, f"{scale:g}", flow, *(verdict(row.get(m)) for m in columns)]
        for (method, scale, flow), row in found.items()
    ]
    return markdown_table(["method", "scale", "flow", *titles], body)


def verdict(claim: Any) -> str:
    """Whether it holds, and its numbers; nothing where there is none."""
    return f"{'yes' if claim.holds else '**NO**'}: {claim.numbers}" if claim else ""


def worse(averages: Rows, metrics: list[str]) -> list[str]:
    """What is worse after refinement than before, beyond the claims; a line per metric.

    By more than 5 % and, where lower is better, by more than a fresh real draw has: no test of
    significance.
    """
    lines = []
    for metric in metrics:
        better, cases = meaning(metric).better, []
        floor = averages.real.get(metric, 0.0)
        for cell, after in averages.where(stage="after").having(metric).items():
            before = averages.get(cell.before, {})
            claimed = metric in PROMISES and (cell.scale or 0) > 1
            if cell.flow not in OF_THE_PAPER or claimed or metric not in before:
                continue
            a, b = after[metric], before[metric]
            loss = {"lower": a - b, "higher": b - a, "real": abs(a - floor) - abs(b - floor)}
            least = max(0.05 * abs(b), abs(floor) if better == "lower" else 0.0)
            if better is not None and loss[better] > least:
                change = f"{show(metric, b)} → {show(metric, a)}"
                cases.append(f"{cell.method} {cell.scale:g} {cell.flow} {change}")
        if cases:
            known = f" (real {show(metric, floor)})" if metric in averages.real else ""
            lines.append(f"`{metric}`{known}: {'; '.join(cases)}")
    return lines


def _promise_kept(metric: str, before: dict, after: dict, real: dict) -> bool | None:
    if PROMISES[metric] == "falls":
        return after[metric] < before[metric]
    if metric not in real:
        return None
    floor = real[metric]
    if PROMISES[metric] == "closer to real":
        return abs(after[metric] - floor) < abs(before[metric] - floor)
    variances = (held[metric] * (1 - held[metric]) / held["n"] for held in (after, real))
    excess = after[metric] - floor if metric == "wrong_class" else floor - after[metric]
    return excess <= 2 * sum(variances) ** 0.5


def _as_good(metric: str, shared: float, own: float, real: dict) -> bool | None:
    """Within 10 %, or better; of a gap to real the gaps are compared, as -log p has no zero."""
    if metric == "nearest_real":  # lower than the scale's own is better only down to real
        if metric not in real:
            return None
        nearer = abs(shared - real[metric]) <= abs(own - real[metric])
        return nearer or abs(shared - own) <= 0.1 * own
    if ONE_FOR_ALL[metric] == "gap to real" and metric not in real:
        return None
    return shared <= 1.1 * own
