"""What a study claims about refinement, decided by the rows of its table."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_cfg.evaluation.tables import markdown_table
from lightning_cfg.metrics.meaning import meaning, show
from lightning_cfg.metrics.over_seeds import OverSeeds, difference, each, positive
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.rows import Rows, loss

OF_THE_PAPER = ("all", "dedicated")  # flows by its recipe: no claim is made about variants
PROMISES = {  # metric: what refinement should do to it at every scale above 1
    "outliers": "falls",
    "fd_classifier": "falls",
    "nll_mean": "closer to real",
    "nearest_real": "closer to real",
    "wrong_class": "≤ real + 2 s.e.",
    "class_accuracy": "≥ real - 2 s.e.",
}
LEVELS = ("wrong_class", "class_accuracy")  # shares that real data have, and may be better
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


ONE_SEED = (
    "Decided by the numbers of one seed, whose differences may be that seed's. Not counted is what "
    "could not fail."
)
OVER_SEEDS = (
    "Decided by differences paired by seed: a claim holds where the 95 % interval of the mean "
    "difference (Student's t over the seeds) excludes 0 in its favour, **NO** is where it excludes "
    "0 against it, and otherwise there is no difference. `wrong_class` and `class_accuracy` are NO "
    "where the interval of their difference to a fresh real draw's is on the wrong side of 0, and "
    "hold where it is not and refinement has improved them. Not counted is what could not fail."
)
NOTHING_TO_MEND = "nothing to mend and nothing broken (0 before and after)"
BY_ITSELF = "at real's level before refinement too"
BOTH_NOTHING = "0 with either flow"


@dataclass(frozen=True)
class Claim:
    """One claim about one method, scale and flow, and the numbers that decide it."""

    about: str  # "refinement", or "one for all": that flow against the scale's own
    metric: str
    method: str
    scale: float | None
    flow: str  # whose samples: "all" or "dedicated"
    holds: bool | None  # None: no difference, over seeds
    numbers: str
    real: str = ""  # what a fresh real draw has
    left_out: str = ""  # why it is not counted: it could not fail

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
    of that one's or better. Rows of several seeds decide by paired differences (`OVER_SEEDS`). A
    claim about what was not measured is left out, and one that could not fail is `left_out`.
    """
    return [claim for claim in _claims(rows) if not claim.left_out]


def left_out(rows: list[dict]) -> list[Claim]:
    """The claims that are not counted, as they could not fail."""
    return [claim for claim in _claims(rows) if claim.left_out]


def _claims(rows: list[dict]) -> Iterator[Claim]:
    averages = Rows.averaged(rows)
    real = averages.real
    for cell, after in averages.where(stage="after").items():
        if (cell.scale or 0) <= 1 or cell.flow not in OF_THE_PAPER:
            continue
        before, what = averages[cell.before], (cell.method, cell.scale, cell.flow)
        own = averages.get(cell._replace(flow="dedicated"), {}) if cell.flow == "all" else {}
        for metric in (m for m in PROMISES if m in before and m in after):
            if PROMISES[metric] != "falls" and metric not in real:
                continue
            decided = _level_kept if metric in LEVELS else _improved
            holds, by, why = decided(metric, before, after, real)
            numbers = f"{show(metric, before[metric])} → {show(metric, after[metric])}{by}"
            floor = show(metric, real.get(metric))
            yield Claim("refinement", metric, *what, holds, numbers, floor, why)
        for metric in (m for m in ONE_FOR_ALL if m in own and m in after):
            a, b = after[metric], own[metric]
            if metric == "nearest_real" and metric not in real:
                continue
            if ONE_FOR_ALL[metric] == "gap to real":
                if metric not in real:
                    continue
                a, b = (each(_gap, value, real[metric]) for value in (a, b))
            spare = _spare(metric, a, b, real)
            holds = spare >= 0 if not isinstance(spare, OverSeeds) else positive(spare)
            numbers = f"{show(metric, a)} vs {show(metric, b)}{_by(metric, difference(b, a))}"
            why = BOTH_NOTHING if a == b == 0 else ""
            yield Claim("one for all", metric, *what, holds, numbers, left_out=why)


def _by(metric: str, gain: float, word: str = "better by") -> str:
    """Over seeds the difference that decides."""
    return f", {word} {show(metric, gain)}" if isinstance(gain, OverSeeds) else ""


def summary(claims: Sequence[Any], not_counted: Sequence[Any] = ()) -> str:
    """How many claims hold, then a line for each that does not."""
    lines = [f"{_counted(claims)} claims hold{_others(claims, not_counted)}"]
    failed = [claim for claim in claims if claim.holds is False]
    return "\n".join([*lines, *(f"  NO ({claim.about}): {claim}" for claim in failed)])


def _counted(claims: Sequence[Any]) -> str:
    return f"{sum(claim.holds is True for claim in claims)} of {len(claims)}"


def _others(claims: Sequence[Any], not_counted: Sequence[Any]) -> str:
    """How many show no difference, and how many are not counted."""
    neither = sum(claim.holds is None for claim in claims)
    parts = [f"{neither} show no difference"] if neither else []
    parts += [f"{len(not_counted)} could not fail and are left out"] if not_counted else []
    return "".join(f"; {part}" for part in parts)


def told(case: Case) -> list[str]:
    """Markdown: the claims, a column each, with yes or NO and the numbers; the plain sentences."""
    claims, spared, parts = check_claims(case.rows), left_out(case.rows), []
    several = len(case.seeds) > 1
    for about, heads in (("refinement", PROMISES), ("one for all", ONE_FOR_ALL)):
        found = [claim for claim in claims if claim.about == about]
        apart = [claim for claim in spared if claim.about == about]
        if not found and not apart:
            continue
        if about == "one for all":
            parts.append(
                "One flow for all scales vs the flow trained for the scale alone: is the first "
                "within 10 % of the second, or better?"
                + (" By the interval of 1.1 times the second less the first." if several else "")
            )
        else:
            parts.append(OVER_SEEDS if several else ONE_SEED)
        parts += [_verdicts(found, heads, several)] if found else []
        parts += _said(found, about) + _not_counted(apart)
    if not parts:
        parts = ["No scale above 1 was refined, so there is no claim to check."]
    losses = worse(case.averages, case.metrics)
    if losses:
        parts.append(
            "Beyond these checks, refinement made worse, by "
            + (
                "the interval of the difference paired by seed:"
                if several
                else "more than 5 % and, where lower is better, by more than a fresh real draw has "
                "(no test of significance):"
            )
        )
        parts.append("\n".join(f"- {line}" for line in losses))
    return parts


def _said(found: list[Claim], about: str) -> list[str]:
    """How many hold, and which do not."""
    no = [claim for claim in found if claim.holds is False]
    neither = [claim for claim in found if claim.holds is None]
    parts = []
    if no:
        parts.append(
            f"{_counted(found)} checks hold. **At odds with the paper's claim** that "
            f"{PAPER[about]}:"
        )
        parts.append("\n".join(f"- {claim}" for claim in no))
    elif found:
        every = f"All {len(found)}" if not neither else _counted(found)
        parts.append(
            f"{every} checks hold: nothing in them is at odds with the paper's claim that "
            f"{PAPER[about]}."
        )
    if neither:
        parts.append(f"No difference over the seeds in {len(neither)}:")
        parts.append("\n".join(f"- {claim}" for claim in neither))
    return parts


def _not_counted(apart: list[Claim]) -> list[str]:
    """The claims that could not fail, by the reason."""
    reasons = Counter(claim.left_out for claim in apart)
    lines = [
        f"- {n}, {why}: "
        + "; ".join(
            f"{c.method} {c.scale:g} {c.flow} {c.metric}" for c in apart if c.left_out == why
        )
        for why, n in reasons.items()
    ]
    return [f"Not counted are {len(apart)} that could not fail:", "\n".join(lines)] if apart else []


def _verdicts(claims: list[Claim], heads: dict[str, str], several: bool) -> str:
    """A row per method, scale and flow, a column per metric."""
    found: dict[tuple, dict[str, Claim]] = {}
    for claim in claims:
        found.setdefault((claim.method, claim.scale, claim.flow), {})[claim.metric] = claim
    columns = [m for m in heads if any(m in row for row in found.values())]
    floors = {c.metric: f" (real {c.real})" for c in claims if c.real}
    if several:  # whose intervals are in the place of standard errors
        heads = {metric: re.sub(r" . 2 s\.e\.", "", head) for metric, head in heads.items()}
    titles = [f"{m} {heads[m]}".removesuffix(" itself") + floors.get(m, "") for m in columns]
    body = [
        [method, f"{scale:g}", flow, *(verdict(row.get(m)) for m in columns)]
        for (method, scale, flow), row in found.items()
    ]
    return markdown_table(["method", "scale", "flow", *titles], body)


def verdict(claim: Any) -> str:
    """Whether it holds, and its numbers; nothing where there is none."""
    if claim is None:
        return ""
    return (
        f"{ {True: 'yes', False: '**NO**', None: 'no difference'}[claim.holds] }: {claim.numbers}"
    )


def worse(averages: Rows, metrics: list[str]) -> list[str]:
    """What is worse after refinement than before, beyond the claims; a line per metric.

    Over seeds by the interval of the paired difference; of one seed by more than 5 % and, where
    lower is better, by more than a fresh real draw has: no test of significance.
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
            if better is not None and _lost(metric, a, b, floor):
                change = f"{show(metric, b)} → {show(metric, a)}"
                cases.append(f"{cell.method} {cell.scale:g} {cell.flow} {change}")
        if cases:
            known = f" (real {show(metric, floor)})" if metric in averages.real else ""
            lines.append(f"`{metric}`{known}: {'; '.join(cases)}")
    return lines


def _lost(metric: str, after: float, before: float, floor: float) -> bool:
    lost = difference(loss(metric, after, floor), loss(metric, before, floor))
    if isinstance(lost, OverSeeds):
        return positive(lost) is True
    least = abs(floor) if meaning(metric).better == "lower" else 0.0
    return lost > max(0.05 * abs(before), least)


def _gap(value: float, floor: float) -> float:
    return abs(value - floor)


Decided = tuple[bool | None, str, str]  # whether it holds, by what, and why it could not fail


def _improved(metric: str, before: dict, after: dict, real: dict) -> Decided:
    """A number, or its gap to real's, has fallen."""
    a, b = after[metric], before[metric]
    if PROMISES[metric] == "closer to real":
        a, b = (each(_gap, value, real[metric]) for value in (a, b))
    gain = difference(b, a)
    return positive(gain), _by(metric, gain), NOTHING_TO_MEND if a == b == 0 else ""


def _level_kept(metric: str, before: dict, after: dict, real: dict) -> Decided:
    """A share is not on the wrong side of real's."""
    gain = difference(loss(metric, before[metric], None), loss(metric, after[metric], None))
    if not _at_level(metric, after, real):
        return False, _by(metric, _excess(metric, after, real), "worse than real by"), ""
    improved = not isinstance(gain, OverSeeds) or positive(gain)
    why = BY_ITSELF if _at_level(metric, before, real) else ""
    return improved or None, _by(metric, gain), why


def _excess(metric: str, held: dict, real: dict) -> float:
    """By how much a share is worse than real's."""
    return difference(loss(metric, held[metric], None), loss(metric, real[metric], None))


def _at_level(metric: str, held: dict, real: dict) -> bool:
    """A share is no worse than real's: within 2 standard errors, or by the interval over seeds."""
    excess = _excess(metric, held, real)
    if isinstance(excess, OverSeeds):
        return positive(excess) is not True
    variances = (one[metric] * (1 - one[metric]) / one["n"] for one in (held, real))
    return excess <= 2 * sum(variances) ** 0.5


def _spare(metric: str, shared: float, own: float, real: dict) -> float:
    """By how much the flow for all is within 10 % of the scale's own, or better; below 0: not.

    Of a gap to real the gaps are compared, as -log p has no zero.
    """
    if metric != "nearest_real":
        return each(lambda a, b: 1.1 * b - a, shared, own)

    def spare(a: float, b: float, floor: float) -> float:
        # lower than the scale's own is better only down to real
        return max(_gap(b, floor) - _gap(a, floor), 0.1 * b - abs(a - b))

    return each(spare, shared, own, real[metric])
