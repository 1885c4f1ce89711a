"""What a study claims about refinement, decided by the rows of its table."""

from dataclasses import dataclass

from lightning_cfg.reports.figures import REAL

OF_THE_PAPER = ("all", "dedicated")  # flows by its recipe; variants are shown, and claim nothing
KEY = ("method", "scale", "stage", "flow")
METRICS = {  # name: which way is better, definition
    "frechet": ("lower", "squared Fréchet distance of the points' mean and covariance to held-out "
                "real ones', squared units of the data"),
    "energy_distance": ("lower", "energy distance to held-out real points, units of the data; "
                        "scatters around 0 for real data"),
    "wasserstein": ("lower", "Wasserstein-1 distance to the exact conditional distribution, units "
                    "of the data; of a fresh draw it is the sampling error"),
    "nll_mean": ("real", "mean of -log p(x given its class) under the exact density, nats"),
    "nll_median": ("real", "median of the same, nats"),
    "outliers": ("lower", "share of samples less likely than all but 0.1 % of real points"),
    "wrong_class": ("real", "share that the exact posterior gives to another class"),
    "nearest_real": ("real", "mean distance to the nearest held-out real sample, units of the "
                     "data"),
    "recall": ("higher", "share of real data that the samples cover (improved recall)"),
    "effective_targets": ("higher", "effective number of distinct real training points that are "
                          "nearest to some sample"),
    "fd_classifier": ("lower", "squared Fréchet distance to held-out real data in a trained "
                      "classifier's features; falls with n"),
    "class_accuracy": ("higher", "share that a classifier reads as their class"),
}  # fmt: skip
OF_FEATURES = {  # the same of what is measured in a feature space, by the start of its name
    "fid": ("lower", "Fréchet distance in Inception's features"),
    "fd_dinov2": ("lower", "Fréchet distance in DINOv2's features"),
    "fd": ("lower", "squared Fréchet distance in this feature space"),
    "kid": ("lower", "kernel distance in Inception's features, mean over random subsets"),
    "kd": ("lower", "kernel distance in this feature space, mean over random subsets"),
    "precision": ("higher", "share of samples within reach of real points (improved precision)"),
    "recall": ("higher", "share of real points within reach of samples (improved recall)"),
    "density": ("real", "samples within reach of a real point, over k; about 1 for real data"),
    "coverage": ("higher", "share of real points with a sample within their reach"),
    "nearest_train": ("real", "mean distance to the nearest training point in this space"),
    "memorised": ("lower", "share of samples three times nearer to one training point than to the "
                  "next"),
    "near_copies": ("real", "share of samples nearer to a training point than all but 1 % of "
                    "held-out real ones"),
    "is": ("higher", "Inception score by this space's own classifier"),
    "confidence": ("higher", "mean probability that a classifier gives to their class"),
}  # fmt: skip
SHARES = ("outliers", "wrong_class", "recall", "class_accuracy", "confidence", "precision",
          "coverage", "memorised", "near_copies")  # fmt: skip
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


@dataclass(frozen=True)
class Claim:
    """One claim about one method, scale and flow, and the numbers that decide it."""

    about: str  # "refinement", or "one for all": that flow against the scale's own
    metric: str
    method: str
    scale: float
    flow: str  # whose samples: "all" or "dedicated"
    holds: bool
    numbers: str
    real: str = ""  # what a fresh real draw has

    def __str__(self) -> str:
        flow = {"all": "one flow for all", "dedicated": "its own flow"}[self.flow]
        known = f" (real {self.real})" if self.real else ""
        return f"{self.method} at scale {self.scale:g}, {flow}: {self.metric} {self.numbers}{known}"


def averaged(rows: list[dict]) -> dict[tuple, dict]:
    """Means over the classes, weighted by n: {(method, scale, stage, flow): {nfe, n, metrics}}.

    A number that some class lacks is left out; n is the sum. A text is that of the first class.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in KEY), []).append(row)
    out = {}
    for key, group in groups.items():
        total = sum(row["n"] for row in group)
        out[key] = {
            name: group[0][name]
            if isinstance(group[0][name], str)
            else sum(row["n"] * row[name] for row in group) / total
            for name in group[0]
            if name not in (*KEY, "class") and all(row.get(name) is not None for row in group)
        }
        out[key]["n"] = total
    return out


def check_claims(rows: list[dict]) -> list[Claim]:
    """The claims of a study, decided by its rows, at every scale above 1 (classes averaged).

    Of each flow: outliers and fd_classifier fall; nll_mean and nearest_real come closer to a fresh
    real draw's; wrong_class is at most real's, class_accuracy at least real's, within 2 standard
    errors sqrt(p(1 - p)/n + p'(1 - p')/n'). Of the flow for all scales, where there is one for the
    scale alone: outliers, fd_classifier, nll_mean's gap to real and nearest_real are within 10 %
    of that one's or better. A claim about what was not measured is left out.
    """
    averages = averaged(rows)
    real = averages.get(REAL, {})
    claims = []
    for (method, scale, stage, flow), after in averages.items():
        if stage != "after" or scale <= 1 or flow not in OF_THE_PAPER:
            continue
        before = averages[method, scale, "before", ""]
        own = averages.get((method, scale, "after", "dedicated"), {})
        for metric in PROMISES:
            if metric not in before or metric not in after:
                continue
            holds = _promise_kept(metric, before, after, real)
            numbers = f"{show(metric, before[metric])} → {show(metric, after[metric])}"
            floor = show(metric, real.get(metric))
            if holds is not None:
                what = ("refinement", metric, method, scale, flow)
                claims.append(Claim(*what, holds, numbers, floor))
        for metric in ONE_FOR_ALL:
            if flow != "all" or metric not in own or metric not in after:
                continue
            holds = _as_good(metric, after, own, real)
            a, b = after[metric], own[metric]
            if ONE_FOR_ALL[metric] == "gap to real" and metric in real:
                a, b = abs(a - real[metric]), abs(b - real[metric])
            numbers = f"{show(metric, a)} vs {show(metric, b)}"
            if holds is not None:
                claims.append(Claim("one for all", metric, method, scale, flow, holds, numbers))
    return claims


def summary(claims: list[Claim]) -> str:
    """How many claims hold, then a line for each that does not."""
    failed = [claim for claim in claims if not claim.holds]
    lines = [f"{len(claims) - len(failed)} of {len(claims)} claims hold"]
    return "\n".join([*lines, *(f"  NO ({claim.about}): {claim}" for claim in failed)])


def worse(averages: dict, metrics: list[str]) -> list[str]:
    """What is worse after refinement than before, beyond the claims; a line per metric.

    By more than 5 % and, where lower is better, by more than a fresh real draw has: no test of
    significance.
    """
    real, lines = averages.get(REAL, {}), []
    for metric in metrics:
        better, cases = meaning(metric)[0], []
        floor = real.get(metric, 0.0)
        for (method, scale, stage, flow), after in averages.items():
            before = averages.get((method, scale, "before", ""), {})
            claimed = metric in PROMISES and scale is not None and scale > 1
            if stage != "after" or flow not in OF_THE_PAPER or claimed:
                continue
            if metric not in before or metric not in after:
                continue
            a, b = after[metric], before[metric]
            loss = {"lower": a - b, "higher": b - a, "real": abs(a - floor) - abs(b - floor)}
            least = max(0.05 * abs(b), abs(floor) if better == "lower" else 0.0)
            if loss.get(better, 0.0) > least:
                cases.append(f"{method} {scale:g} {flow} {show(metric, b)} → {show(metric, a)}")
        if cases:
            known = f" (real {show(metric, floor)})" if metric in real else ""
            lines.append(f"`{metric}`{known}: {'; '.join(cases)}")
    return lines


def meaning(column: str) -> tuple[str | None, str]:
    """(which way is better, definition) of a column of a table.

    A column of a feature space bears its label, its numbers and the reference behind its name.
    """
    if column in METRICS:
        return METRICS[column]
    kind = kind_of(column)
    better, text = OF_FEATURES.get(kind, (None, "a metric of one's own"))
    if "_std" in column:
        return None, f"deviation of {kind} over the subsets or splits"
    if "_infinity" in column:
        text += ", extrapolated to endless samples"
    return better, text


def kind_of(column: str) -> str:
    """The longest start of a column's name that is a known one."""
    words = column.split("_")
    starts = ("_".join(words[:i]) for i in range(len(words), 0, -1))
    return next((start for start in starts if start in OF_FEATURES), column)


def show(name: str, value: object) -> str:
    """Three significant digits, shares in per cent; counts whole, words as they are."""
    if value is None or isinstance(value, str):
        return value or ""
    if name in SHARES or (kind_of(name) in SHARES and "_std" not in name):
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.3g}"


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


def _as_good(metric: str, shared: dict, own: dict, real: dict) -> bool | None:
    a, b = shared[metric], own[metric]
    if ONE_FOR_ALL[metric] == "gap to real" or metric == "nearest_real":
        if metric not in real:
            return None
        gaps = abs(a - real[metric]), abs(b - real[metric])
        if metric == "nearest_real":  # lower than the scale's own is better only down to real
            return gaps[0] <= gaps[1] or abs(a - b) <= 0.1 * b
        a, b = gaps  # -log p has no zero of its own, so no ratios
    return a <= 1.1 * b
