"""The best schedule: what it is made of, how it is learned, and the distance to its front."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from test_guidance_methods import FOUR

from lightning_cfg import metrics
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.schedules import knots
from lightning_cfg.metrics.over_seeds import OverSeeds
from lightning_cfg.reports import front
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import png_of
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded

F64 = torch.float64
HERE = Path(__file__).parent


def test_knots_are_straight_in_ln_sigma_and_level_beyond():
    schedule = knots(sigmas=[0.1, 1.0, 10.0], heights=[1.0, 3.0, -1.0], scale=3.0)
    sigma = torch.tensor([0.01, 0.1, 10**-0.5, 1.0, 10**0.5, 10.0, 99.0], dtype=F64)
    s = torch.tensor([1, 1, 2, 3, 1, -1, -1], dtype=F64)
    torch.testing.assert_close(schedule(sigma), 1 + 2 * s)
    assert knots(sigmas=[1.0], heights=[0.5])(sigma).tolist() == [1.5] * 7


@pytest.mark.parametrize(
    "sigmas, heights, message",
    [
        ([0.1, 1.0], [1.0], "2 sigmas for 1 heights"),
        ([], [], "0 sigmas"),
        ([1.0, 1.0], [1.0, 2.0], "must rise"),
    ],
)
def test_knots_that_are_none_are_refused(sigmas, heights, message):
    with pytest.raises(UserError, match=message):
        knots(sigmas=sigmas, heights=heights)


def test_certainty_is_the_mean_log_posterior_of_the_own_class():
    x = torch.tensor([[0.3, 0.1], [-2.0, 0.5], [0.0, 0.0]], dtype=F64)
    p = FOUR.logits(x, 0.0).softmax(1)[:, 2]
    expected = sum(math.log(v) for v in p.tolist()) / 3
    assert metrics.certainty(x, 2, FOUR)["certainty"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location(
        "best", HERE.parent / "benchmarks/best_schedule.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_learned_is_the_metrics_own_cost(program):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 2, generator=g, dtype=F64), torch.randn(50, 2, generator=g, dtype=F64)
    own = program.energy_distance(x, y).item()
    assert own == pytest.approx(metrics.energy_distance(x, y)["energy_distance"])
    c = torch.arange(30) % 2
    of_class = [metrics.certainty(x[c == k], k, FOUR)["certainty"] for k in (0, 1)]
    distance, certainty = program.cost(FOUR, x, c, [y, y])
    assert certainty.item() == pytest.approx(sum(of_class) / 2)
    parts = [metrics.energy_distance(x[c == k], y)["energy_distance"] for k in (0, 1)]
    assert distance.item() == pytest.approx(sum(parts) / 2)


@pytest.mark.parametrize("name", ["heun", "euler_ancestral"])
def test_a_learned_schedule_costs_less_than_no_guidance_and_more_certainty_more_distance(
    program, name, capsys
):
    sampler, sigmas = {"name": name, "steps": 5, "sigma_max": 10.0}, [0.1, 0.5, 2.0]
    prices = [0.02, 0.5]
    found = program.learned(FOUR, sampler, sigmas, prices, n=80, rounds=6)
    (_, first, *cheap), (_, second, *dear) = found
    noise, c, draw = seeded(range(program.SEED, program.SEED + 80), FOUR.shape, 4)
    *_, (_, x) = sample(sampler, FOUR, noise, c, draw)
    generator = torch.Generator().manual_seed(program.SEED)
    none = program.cost(FOUR, x, c, [FOUR.sample(20, k, generator) for k in range(4)])
    assert first != second
    assert cheap[0] - 0.02 * cheap[1] < float(none[0] - 0.02 * none[1]) - 1e-4
    assert dear[1] > cheap[1] + 0.01
    assert dear[0] > cheap[0]
    lines = capsys.readouterr().out.splitlines()
    for line, (price, _, distance, certainty), starts in zip(lines, found, (2, 3), strict=True):
        costs = [float(cost) for cost in line.split("starts ")[1].split(", ")]
        assert len(costs) == starts
        assert min(costs) == pytest.approx(distance - price * certainty, abs=1e-5)


# The distance to the front

POINTS = [(0.0, -0.4), (0.02, -0.1), (0.01, -0.2)]  # in any order


def test_what_is_below_the_front_by_hand():
    assert front.below(POINTS, 0.01, -0.25) == pytest.approx(0.05)
    assert front.below(POINTS, 0.005, -0.4) == pytest.approx(0.1)
    assert front.below(POINTS, 0.02, -0.1) == pytest.approx(0.0)
    assert front.below(POINTS, 0.015, 0.0) == pytest.approx(-0.15)  # above it
    assert front.below(POINTS, 0.03, 0.0) is None
    dented = [(0.0, -0.4), (0.01, -0.1), (0.02, -0.3)]  # the last one is no part of a front
    assert front.below(dented, 0.02, -0.3) == pytest.approx(0.2)


def test_only_what_has_more_certainty_is_drawn_as_the_front():
    points = [(0.0, -0.2), (0.001, -0.4), (0.01, -0.2), (0.02, -0.1)]
    assert front.rising(points) == [(0.0, -0.2), (0.02, -0.1)]


def test_over_seeds_each_has_its_own_front():
    own = [(OverSeeds({0: d, 1: d}), OverSeeds({0: c, 1: c + 0.1})) for d, c in POINTS]
    gap = front.below(own, OverSeeds({0: 0.01, 1: 0.005}), OverSeeds({0: -0.25, 1: -0.25}))
    assert gap.by_seed == pytest.approx({0: 0.05, 1: 0.05})
    gap = front.below(own, OverSeeds({0: 0.01, 1: 0.01}), OverSeeds({0: -0.25, 1: -0.25}))
    assert gap.deviation == pytest.approx(0.1 / 2**0.5)


def method(scale=2.0, sampler="heun", name="classifier_free", model="exact"):
    guidance = {"name": name, "scale": scale}
    return {
        "guidance": guidance,
        "models": {"model": model},
        "generation": {"sampler": {"name": sampler}},
    }


def rows_of(**points):
    for seed in (0, 1):
        for name, own in points.items():
            for scale, (distance, certainty) in own.items():
                shift = 0.02 * seed if name == "gfcg" else 0.0
                front = {"method": name, "scale": scale, "stage": "before", "flow": "", "n": 10}
                front |= {"seed": seed, "class": 0}
                yield {**front, "energy_distance": distance, "certainty": certainty - shift}


@pytest.fixture
def found():
    best = {"name": "knots", "sigmas": [1.0], "heights": [1.0]}
    methods = {"cfg": method(), "gfcg": method(name="gfcg", model="base")}
    methods |= {"best_1": method(best), "best_2": method(best)}
    methods |= {"noisy_cfg": method(sampler="euler_ancestral")}  # which has no front beside it
    rows = rows_of(
        cfg={1.0: (0.0, -0.4), 2.0: (0.01, -0.25), 9.0: (0.5, -0.1)},
        gfcg={1.0: (0.001, -0.5), 3.0: (0.015, -0.16)},
        best_1={2.0: (0.01, -0.2)},
        best_2={2.0: (0.02, -0.1)},
        noisy_cfg={2.0: (0.01, -0.2)},
    )
    return Case("", None, list(rows), seeds=[0, 1]), {"methods": methods}


def test_the_report_has_a_row_for_each_method_and_scale_in_units_of_its_deviation(found):
    case, config = found
    kind, table = front.sections(case.averages, config)
    assert "deviation" in front.meaning(several=True)
    assert kind == "**Deterministic sampler**"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:2] for row in cells] == [
        ["cfg", "1"], ["cfg", "2"], ["cfg", "9"], ["gfcg", "1"], ["gfcg", "3"]
    ]  # fmt: skip
    assert cells[1][4:] == ["0.05 ± 0", ""]  # no deviation to measure it by
    assert cells[2][4:] == ["", ""]  # beyond the front
    gaps = (0.01, 0.03)  # -0.15 on the front, -0.16 and -0.18 the method's
    s = abs(gaps[1] - gaps[0]) / 2**0.5
    assert cells[4][5] == f"{sum(gaps) / 2 / s:.1f}"


def test_the_plane_is_drawn_where_there_is_a_front(found):
    case, config = found
    (drawn,) = front.draw(case, config)
    assert drawn.name == "front"
    panel = drawn.figure.axes[0]
    labels = [line.get_label() for line in panel.get_lines()]
    assert {"best schedule", "CFG", "GFCG"} <= set(labels)
    assert list(panel.get_lines()[0].get_xdata()) == [0.0, 0.01, 0.02]
    assert png_of(drawn.figure).startswith(b"\x89PNG")
    config["methods"] = {k: v for k, v in config["methods"].items() if "best" not in k}
    assert list(front.draw(case, config)) == []
    assert front.sections(case.averages, config) == []


def test_a_method_has_one_name_and_colour_in_both_panels(found):
    case, config = found
    best = {"name": "knots", "sigmas": [1.0], "heights": [1.0]}
    config["methods"] |= {
        "cfg_ancestral": method(sampler="euler_ancestral"),
        "best_ancestral": method(best, sampler="euler_ancestral"),
    }
    more = rows_of(
        cfg_ancestral={1.0: (0.0, -0.4), 2.0: (0.01, -0.2)}, best_ancestral={2.0: (0.01, -0.1)}
    )
    (drawn,) = front.draw(Case("", None, [*case.rows, *more], seeds=[0, 1]), config)
    colours = [
        {line.get_label(): line.get_color() for line in panel.get_lines()}
        for panel in drawn.figure.axes
    ]
    assert len(colours) == 2
    assert colours[0]["CFG"] == colours[1]["CFG"] != "black"
    assert "GFCG" in colours[0]
    assert "noisy CFG" in colours[1]
    assert "GFCG" not in colours[1]
