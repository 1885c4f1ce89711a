"""Numbers over seeds against scipy's t tests; bold and claims that follow from them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_cfg.evaluation.build import fresh_points
from lightning_cfg.metrics.meaning import show
from lightning_cfg.metrics.over_seeds import OverSeeds, difference, each, over, positive
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.claims import check_claims, left_out, summary, told, worse
from lightning_cfg.reports.differences import differences
from lightning_cfg.reports.panels import Line, per_name
from lightning_cfg.reports.rows import Rows, best, bold

DRAWN = np.random.default_rng(0).normal(size=(40, 2, 7))


def over_seeds(values) -> OverSeeds:
    return OverSeeds({10 + seed: float(value) for seed, value in enumerate(values)})


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_intervals_and_paired_differences_are_those_of_students_t(n):
    counted = 0
    for pair in DRAWN[:, :, :n]:
        shifted = pair[0] + 0.8
        one, other = over_seeds(shifted), over_seeds(pair[1])
        expected = stats.ttest_1samp(shifted, 0.0).confidence_interval(0.95)
        assert (one - one.half, one + one.half) == pytest.approx(tuple(expected), rel=1e-9)
        assert one.deviation == pytest.approx(shifted.std(ddof=1), rel=1e-12)
        test, found = stats.ttest_rel(shifted, pair[1]), difference(one, other)
        low, high = test.confidence_interval(0.95)
        assert (found - found.half, found + found.half) == pytest.approx((low, high), rel=1e-9)
        assert (positive(found) is None) == (test.pvalue > 0.05)
        assert positive(found) == (None if test.pvalue > 0.05 else bool(test.statistic > 0))
        counted += positive(found) is not None
    assert counted or n == 2


def test_the_standard_errors_of_three_and_five_seeds():
    for n, errors in ((3, 4.30), (5, 2.78)):
        value = over_seeds(range(n))
        assert value.half / (value.deviation / n**0.5) == pytest.approx(errors, abs=0.005)


def test_seeds_that_all_say_the_same_have_no_interval_to_hide_in():
    assert positive(difference(over_seeds([0.3, 0.3]), over_seeds([0.2, 0.2]))) is True
    assert positive(difference(over_seeds([0.2, 0.2]), over_seeds([0.2, 0.2]))) is None
    assert (positive(0.1), positive(0.0), positive(-0.1)) == (True, False, False)


def test_functions_are_taken_seed_by_seed():
    gap = each(lambda a, b, c: abs(a - b) + c, over_seeds([1, 5]), over_seeds([3, 3]), 1.0)
    assert gap.by_seed == {10: 3.0, 11: 3.0}  # and not that of the means, 0
    with pytest.raises(ValueError, match="other seeds"):
        difference(OverSeeds({0: 1.0, 1: 2.0}), OverSeeds({0: 1.0, 2: 2.0}))
    with pytest.raises(ValueError, match="1 seeds"):
        OverSeeds({0: 1.0})
    assert over({4: 2.5}) == 2.5
    assert not isinstance(over({4: 2.5}), OverSeeds)
    assert over({0: 1.0, 1: None}) is None
    assert over({0: "model 5", 1: "model 5"}) == "model 5"


def test_a_mean_is_written_with_its_interval():
    value = over_seeds([0.10, 0.12, 0.14])  # .12 ± 4.3027 * .02 / sqrt(3)
    assert show("outliers", value) == "12 ± 5 %"
    assert show("frechet", value) == "0.12 ± 0.05"
    assert show("frechet", over_seeds([1.5, 1.5 + 1e-9, 1.5])) == "1.5 ± 0"
    assert show("frechet", over_seeds([-1e-5, 1e-5, 0.0])) == "0 ± 2.5e-05"
    assert f"{value:.2g}" == "0.12"


# Rows

NONE = {"nfe": None, "evaluations": None, "seconds": None}


def row(seed, stage, flow="", c=0, n=100, method="cfg", scale=2.0, **metrics):
    front = {"seed": seed, "method": method, "scale": scale, "class": c}
    return {**front, "stage": stage, "flow": flow, "nfe": 4.0, "n": n, **metrics}


def real(seed, **metrics):
    return {**row(seed, "real", method="real", scale=None, **metrics), **NONE}


def test_classes_are_averaged_within_a_seed_and_then_the_seeds():
    rows = [
        row(0, "before", c=0, n=300, outliers=0.1), row(0, "before", c=1, n=100, outliers=0.3),
        row(7, "before", c=0, n=200, outliers=0.2), row(7, "before", c=1, n=200, outliers=0.4),
    ]  # fmt: skip
    ((cell, found),) = Rows.averaged(rows).items()
    assert found["outliers"].by_seed == pytest.approx({0: 0.15, 7: 0.3})
    assert (found["n"], found["nfe"]) == (400, 4.0)
    assert not isinstance(found["nfe"], OverSeeds)
    rows[3]["outliers"] = None  # not measured
    assert "outliers" not in Rows.averaged(rows)[cell]


def test_bold_is_the_best_and_what_the_paired_interval_does_not_tell_from_it():
    noise = np.array([0.0, 5.0, -5.0])  # of the seeds, the same for all: paired it goes out
    top = over_seeds(10 + noise)
    alike = over_seeds(10.4 + noise + [0.5, -0.5, 0.0])
    worse_ = over_seeds(11 + noise + [0.1, -0.1, 0.0])
    values = [worse_, alike, top]
    assert best("frechet", values) is top
    cells = [bold("frechet", value, top) for value in values]
    assert [cell.startswith("**") for cell in cells] == [False, True, True]
    # unpaired, 11 would not be told from 10: each has an interval of ± 12
    assert top.half > 12
    # closer to real is better: 3 below it is as good as 3 above it
    floor = over_seeds([1.0, 1.1, 0.9])
    nearest = [over_seeds([4.0, 4.1, 3.9]), over_seeds([-2.0, -1.9, -2.1]), over_seeds([1, 1, 1])]
    chosen = best("nll_mean", nearest, floor)
    assert chosen is nearest[2]
    cells = [bold("nll_mean", value, nearest[0], floor) for value in nearest]
    assert [cell.startswith("**") for cell in cells] == [True, True, False]
    assert bold("frechet", 2.0, 1.0) == "2"  # one seed: the best only


# Claims

SEEDS = (0, 1, 2)


def claimed(before, after, floor=(0.0, 0.0, 0.0), metric="outliers", flow="all"):
    """Rows of one metric, a number for each seed."""
    rows = [row(s, "before", **{metric: v}) for s, v in zip(SEEDS, before, strict=True)]
    rows += [row(s, "after", flow, **{metric: v}) for s, v in zip(SEEDS, after, strict=True)]
    return rows + [real(s, **{metric: v}) for s, v in zip(SEEDS, floor, strict=True)]


def answers(*args, **how):
    rows = claimed(*args, **how)
    return [c.holds for c in check_claims(rows)], [c.left_out for c in left_out(rows)]


def test_a_claim_holds_where_the_paired_difference_excludes_0_in_its_favour():
    before = [0.2, 0.4, 0.6]
    assert answers(before, [0.1, 0.29, 0.51]) == ([True], [])
    assert answers(before, [0.3, 0.51, 0.69]) == ([False], [])
    assert answers(before, [0.1, 0.45, 0.5]) == ([None], [])
    gaps = {"metric": "nll_mean", "floor": [0.5, 0.5, 0.5]}
    assert answers([1.5, 1.6, 1.4], [0.1, 0.2, 0.1], **gaps) == ([True], [])
    assert answers([1.5, 1.6, 1.4], [-0.5, -0.6, -0.4], **gaps) == ([None], [])  # 1 on either side


def test_what_could_not_fail_is_not_counted():
    nothing, some = [0.0, 0.0, 0.0], [0.2, 0.21, 0.19]
    assert answers(nothing, nothing) == (
        [],
        ["nothing to mend and nothing broken (0 before and after)"],
    )
    assert answers(nothing, some) == ([False], [])  # broken: it has failed
    level = {"metric": "wrong_class", "floor": [0.1, 0.11, 0.09]}
    itself = "at real's level before refinement too"
    low, high = [0.05, 0.06, 0.04], [0.3, 0.31, 0.29]
    assert answers(low, [0.1, 0.1, 0.1], **level) == ([], [itself])
    assert answers(low, high, **level) == ([False], [])  # it could fail, and has
    assert answers(high, low, **level) == ([True], [])
    assert answers(high, [0.28, 0.27, 0.3], **level) == ([False], [])
    # not above real's, and not told from before either
    assert answers(high, [0.4, 0.1, 0.1], **level) == ([None], [])
    accuracy = {"metric": "class_accuracy", "floor": [0.9, 0.91, 0.89]}
    assert answers([0.95, 0.96, 0.94], [0.92, 0.9, 0.91], **accuracy) == ([], [itself])
    assert answers([0.7, 0.71, 0.69], [0.92, 0.9, 0.91], **accuracy) == ([True], [])


def test_the_same_of_one_seed():
    def one(before, after, metric="outliers", floor=0.0):
        rows = [r for r in claimed([before] * 3, [after] * 3, [floor] * 3, metric) if not r["seed"]]
        for r in rows:
            del r["seed"]
        return [c.holds for c in check_claims(rows)], len(left_out(rows))

    assert one(0.2, 0.1) == ([True], 0)
    assert one(0.0, 0.0) == ([], 1)
    assert one(0.0, 0.1) == ([False], 0)
    assert one(0.05, 0.08, "wrong_class", 0.1) == ([], 1)
    assert one(0.05, 0.5, "wrong_class", 0.1) == ([False], 0)
    assert one(0.5, 0.08, "wrong_class", 0.1) == ([True], 0)


def test_one_for_all_is_within_ten_per_cent_by_the_interval():
    def found(shared, own):
        rows = claimed([0.5, 0.51, 0.52], shared)
        rows += [row(s, "after", "dedicated", outliers=v) for s, v in zip(SEEDS, own, strict=True)]
        return [
            [c.holds for c in which(rows) if c.about == "one for all"]
            for which in (check_claims, left_out)
        ]

    own = [0.20, 0.21, 0.19]
    assert found([0.20, 0.211, 0.191], own) == [[True], []]
    assert found([0.25, 0.26, 0.24], own) == [[False], []]
    assert found([0.15, 0.30, 0.19], own) == [[None], []]
    assert [len(part) for part in found([0.0] * 3, [0.0] * 3)] == [0, 1]


def case_of(rows) -> Case:
    return Case("", None, rows, seeds=list(SEEDS))


def test_the_report_tells_all_three_answers_and_what_is_not_counted():
    rows = []
    for scale, after in ((2.0, [0.1, 0.11, 0.09]), (3.0, [0.2, 0.6, 0.1]), (4.0, [0.5, 0.5, 0.5])):
        rows += [{**r, "scale": scale} for r in claimed([0.3, 0.31, 0.3], after) if r["scale"]]
    rows += [{**r, "method": "b"} for r in claimed([0, 0, 0], [0, 0, 0]) if r["scale"]]
    rows += [real(s, outliers=0.0) for s in SEEDS]
    text = "\n\n".join(told(case_of(rows)))
    assert "excludes 0 in its favour" in text
    assert "| cfg | 2 | all | yes: 30.3 ± 1.4 % → 10 ± 2.5 %, better by 20.3 ± 1.4 % |" in text
    assert "| cfg | 3 | all | no difference: " in text
    assert "| cfg | 4 | all | **NO**: " in text
    assert "1 of 3 checks hold. **At odds" in text
    assert "No difference over the seeds in 1:\n\n- cfg at scale 3, one flow for all" in text
    assert "Not counted are 1 that could not fail:\n\n- 1, nothing to mend" in text
    lines = summary(check_claims(rows), left_out(rows)).split("\n")
    assert lines[0] == (
        "1 of 3 claims hold; 1 show no difference; 1 could not fail and are left out"
    )
    assert len(lines) == 2
    assert "cfg at scale 4" in lines[1]


def test_what_became_worse_is_told_by_the_interval():
    for after, told_ in (([0.80, 0.81, 0.82], 1), ([0.7, 0.95, 0.99], 0)):
        rows = claimed([0.9, 0.91, 0.92], after, [1.0, 1.0, 1.0], metric="recall")
        assert len(worse(Rows.averaged(rows), ["recall"])) == told_


def test_every_difference_is_a_row_with_what_scipy_says():
    values = {
        ("before", "", "cfg"): DRAWN[0, 0, :3], ("after", "all", "cfg"): DRAWN[0, 1, :3] - 3,
        ("after", "k_8", "cfg"): DRAWN[1, 0, :3] - 3, ("before", "", "b"): DRAWN[1, 1, :3],
    }  # fmt: skip
    rows = [row(s, stage, flow, method=m, frechet=float(v[s]))
            for (stage, flow, m), v in values.items() for s in SEEDS]  # fmt: skip
    found = {(r["method"], r["flow"], r["against"]): r for r in differences(case_of(rows))}
    pairs = {
        ("cfg", "all", "before"): (("after", "all", "cfg"), ("before", "", "cfg")),
        ("cfg", "k_8", "before"): (("after", "k_8", "cfg"), ("before", "", "cfg")),
        ("cfg", "k_8", "flow all"): (("after", "k_8", "cfg"), ("after", "all", "cfg")),
        ("b", "", "method cfg"): (("before", "", "b"), ("before", "", "cfg")),
    }
    assert found.keys() == pairs.keys()
    for key, (a, b) in pairs.items():
        test = stats.ttest_rel(values[a], values[b])
        low, high = test.confidence_interval(0.95)
        assert found[key]["mean"] == pytest.approx((low + high) / 2)
        assert found[key]["half_width"] == pytest.approx((high - low) / 2)
        assert found[key]["counts"] == ("yes" if test.pvalue < 0.05 else "no")


def test_figures_have_bands_and_crosses_where_there_are_seeds():
    value = over_seeds([11.0, 12.0, 13.0])
    share = over_seeds([0.0, 0.1, 0.0])

    def drawn(points, floor=None):
        line = Line("a", points, {"color": "red"})
        figure = per_name({"m": "m"}, lambda _: [line], xlabel="x", floors={"m": floor})
        return figure.axes[0]

    band = drawn([(1.0, value), (2.0, value)]).collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((12 - value.half, 12 + value.half))
    assert drawn([(1.0, share), (2.0, share)]).collections[0].get_paths()[0].get_extents().y0 == 0
    assert len(drawn([(value, share)]).collections) == 2  # across and up
    (alone,) = drawn([(1.0, value)]).collections[0].get_segments()
    assert alone.tolist() == [[1.0, 12 - value.half], [1.0, 12 + value.half]]
    assert len(drawn([(1.0, 2.0), (2.0, 2.0)]).collections) == 0
    (span,) = drawn([], over_seeds([1.0, 2.0, 3.0])).patches
    assert span.get_extents().transformed(span.axes.transData.inverted()).height == pytest.approx(2)


# Held-out points in the place of a fresh draw


def test_another_seed_takes_other_held_out_points():
    """One of every stretch of a class, and never one twice; of seed 0 the first."""

    class Set(SimpleNamespace):
        def __len__(self):
            return len(self.c)

        def chosen(self, rows):
            return Set(c=self.c[rows], at=self.at[rows], chosen=None)

    c = torch.arange(200) % 2
    held_out = Set(c=c, at=torch.arange(200))
    side = SimpleNamespace(
        data=SimpleNamespace(truth=None, num_classes=2, drawn=None),
        split=lambda _: held_out,
        replaced=lambda _, others: others,
    )
    found = {}
    for seed in range(4):
        chosen, others = fresh_points(side, 30, seed)
        assert sorted([*chosen.at.tolist(), *others.at.tolist()]) == list(range(200))
        for k in (0, 1):
            at = chosen.at[chosen.c == k] // 2  # places within the class, of 100
            stretch = torch.tensor(
                [next(i for i in range(30) if 100 * (i + 1) // 30 > p) for p in at]
            )
            assert stretch.tolist() == list(range(30))
        found[seed] = tuple(chosen.at.tolist())
    assert len(set(found.values())) == 4
    assert found[0] == tuple(sorted(2 * (100 * i // 30) + k for i in range(30) for k in (0, 1)))
    assert fresh_points(side, 30)[0].at.tolist() == list(found[0])
