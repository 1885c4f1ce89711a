"""What a study has found, in a few sentences: the first thing that its page says."""

from lightning_cfg.metrics.meaning import meaning, show
from lightning_cfg.metrics.over_seeds import difference, positive
from lightning_cfg.reports import comparison, names, tuned
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.claims import PROMISES, check_claims
from lightning_cfg.reports.trajectories import trends

MOST = 3  # sentences of a kind


def finding(case: Case, config: dict) -> list[str]:
    """Sentences about one data set: methods compared, what refinement did, what guidance did."""
    return [*_compared(case, config), *_refined(case, config), *_trajectories(case)]


def _compared(case: Case, config: dict) -> list[str]:
    """Which method makes the fewest class errors at no larger distance than the first one's.

    Of methods that were tuned, than the reference's of the tuning.
    """
    methods, called = list(config["methods"]), names.of_methods(config)
    distance, error = comparison.measures(case)
    if distance is None or error is None:
        return []
    if case.tuned:
        matched = tuned.at_tuned_distance(case, config)
        reference = config["tuning"]["reference"] or methods[0]
        methods.sort(key=lambda method: method != reference)
    elif len(methods) < comparison.LEAST:
        return []
    else:
        matched = comparison.at_matched_distance(case.averages, methods, distance, error)
    out = []
    for scale, limit, values in matched:
        known = {method: value for method, value in values.items() if value is not None}
        if scale <= 1 or not known or methods[0] not in known:
            continue
        fewest = max if meaning(error).better == "higher" else min
        best = fewest(known, key=known.__getitem__)
        first = f"{called[methods[0]]} has {show(error, known[methods[0]])}"
        alike = [
            called[method]
            for method, value in known.items()
            if method != best and positive(difference(value, known[best])) is None
        ]  # by the interval over the seeds
        told = "no method does better" if best == methods[0] else (
            f"{called[best]} is best of what was tried, {show(error, known[best])}"
            + (f" (not to be told from it: {', '.join(alike)})" if alike else "")
        )  # fmt: skip
        out.append(
            f"{names.of_column(error)} at no larger {names.of_column(distance)} than "
            f"{called[methods[0]]}'s at scale {scale:g} ({show(distance, limit)}): {told}; {first}."
        )
    return [_capital(line) for line in out[:MOST]]


def _refined(case: Case, config: dict) -> list[str]:
    """How many claims hold, and what refinement did at the largest scale of each method."""
    claims, averages, called = check_claims(case.rows), case.averages, names.of_methods(config)
    if not claims:
        return []
    held = sum(claim.holds is True for claim in claims)
    out = [f"Refinement: {held} of {len(claims)} claims about it hold."]
    for method in config["methods"]:
        after = averages.where(method=method, stage="after", flow="all")
        if after:
            cell = max(after, key=lambda cell: cell.scale or 0.0)
            before = averages[cell.before]
            changes = [
                f"{names.of_column(metric)} {show(metric, before[metric])} → "
                f"{show(metric, after[cell][metric])} (real {show(metric, averages.real[metric])})"
                for metric in PROMISES
                if all(metric in row for row in (before, after[cell], averages.real))
            ]
            out.append(f"{called[method]} at scale {cell.scale:g}: {'; '.join(changes[:MOST])}.")
    return out[: MOST + 1]


def _trajectories(case: Case) -> list[str]:
    found = trends(case)
    if not found:
        return []
    held = sum(trend.holds is True for trend in found)
    return [
        "Guidance pushes trajectories away from the decision boundary, and bends them, the more "
        f"the larger the scale: {held} of {len(found)} checks hold."
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
