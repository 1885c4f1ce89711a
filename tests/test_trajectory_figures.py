"""The figures of trajectories: which are drawn of what, and what their lines are."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lightning_cfg.data import Mixture
from lightning_cfg.diffusion.trajectories import time_of
from lightning_cfg.interfaces import DataSet, complete
from lightning_cfg.reports import trajectory_figures as figures
from lightning_cfg.reports.case import Case, Traced
from lightning_cfg.reports.panels import save
from lightning_cfg.reports.trajectories import trends
from lightning_cfg.runs.tensors import save_tensors

SIGMA = torch.tensor([100.0, 10.0, 1.0, 0.1, 0.0], dtype=torch.float64)
T = time_of(SIGMA).tolist()
METHODS = {
    "cfg": {"models": {"model": "base"}, "guidance": {"name": "classifier_free"}},
    "cg": {
        "models": {"model": "exact", "classifier": "runs/mlp"},
        "guidance": {"name": "classifier_gradient"},
    },
}
FAR = {"means": [[-1.0], [1.0]], "stds": [0.2, 0.2], "labels": [0, 1]}


def trace(file, classifiers, *, zeros=(0.0,), distance=(1.0, 2.0), shape=(1,)):
    """What `trace` would have found along paths of 3 samples of class 0 and 1 of class 1."""
    path = torch.randn(4, len(SIGMA), *shape, generator=torch.Generator().manual_seed(0))
    save_tensors(file, path=path, sigma=SIGMA, c=torch.tensor([0, 0, 0, 1]))
    rows, curves, boundaries = [], [], []
    for classifier in classifiers:
        for c, n in ((0, 3), (1, 1)):
            front = {"class": c, "classifier": classifier}
            rows.append({**front, "n": n, "straightness": 1.5, "distance": distance[c]})
            for t, sigma in zip(T, SIGMA.tolist(), strict=True):
                band = {name: distance[c] for name in ("distance", "distance_10", "distance_90")}
                curves.append({**front, "sigma": sigma, "t": t, **band, "confidence": 0.5})
                boundaries += [{**front, "t": t, "u": u} for u in zeros]
    return Traced(file=file, rows=rows, curves=curves, boundaries=boundaries)


@pytest.fixture
def study(tmp_path):
    """Draw both methods at scales 1 and 2; keywords go to `trace`. The figures and their folder."""

    def run(data_set, **found):
        save_tensors(tmp_path / "x", x=torch.randn(9, 1), c=torch.arange(9) % 2)
        traced, sets = {}, {}
        for method, classifiers in (("cfg", ["posterior"]), ("cg", ["own", "posterior"])):
            for scale in (1.0, 2.0):
                file = tmp_path / f"{method}{scale}"
                traced[method, scale] = trace(file, classifiers, **found)
                sets[method, scale, "before", ""] = tmp_path / "x"
        case = Case("far", data_set, sets=sets, traced=traced)
        drawn = list(figures.draw(case, {"methods": METHODS}))
        for one in drawn:
            save(one.figure, tmp_path / "figures" / one.name, one.colours)
        return [(one.caption, one.name) for one in drawn]

    return run


def test_one_dimension_has_a_grid_for_each_kind_of_denoiser(study, tmp_path):
    before = dict(matplotlib.rcParams)
    drawn = study(Mixture(**FAR))
    assert dict(matplotlib.rcParams) == before
    names = ["trajectories_learned", "trajectories_exact", "distance", "confidence"]
    assert [name for _, name in drawn] == names
    assert ["learned denoiser" in says for says, _ in drawn] == [True, False, False, False]
    assert ["exact denoiser" in says for says, _ in drawn] == [False, True, False, False]
    for name in names:
        assert (tmp_path / f"figures/{name}.png").read_bytes()[1:4] == b"PNG"
        assert (tmp_path / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")


def test_two_dimensions_have_curves_alone(study):
    plane = Mixture(means=[[-1.0, 0.0], [1.0, 0.0]], stds=[0.2, 0.2], labels=[0, 1])
    names = [name for _, name in study(plane, shape=(2,), zeros=())]
    assert names == ["distance", "confidence"]


def test_no_boundary_and_no_known_truth_are_drawn_too(study):
    unknown = complete(SimpleNamespace(shape=(1,), num_classes=2, truth=None), DataSet, "data")
    assert len(study(unknown, zeros=(), distance=(None, None))) == 4


def test_a_grid_says_what_each_panel_is(tmp_path):
    traced = {
        ("cfg", 1.0): trace(tmp_path / "a", ["posterior"]),
        ("cg", 1.0): trace(tmp_path / "b", ["own", "posterior"], distance=(1.0, 5.0)),
        ("cg", 3.0): trace(tmp_path / "b", ["own", "posterior"], distance=(None, None)),
    }
    figure = figures.grid(Mixture(**FAR), "title", METHODS, traced, {})
    cfg, none, cg, strong = figure.axes
    plain = [text.get_text() for panel in figure.axes for text in panel.texts]
    assert plain.count("the plain conditional model") == 1
    assert "the plain conditional model" in [text.get_text() for text in cfg.texts]
    assert not none.lines  # cfg was not run at scale 3
    assert cg.get_title(loc="left") == "straightness 1.50, distance 2.00"  # 3 of 1, 1 of 5
    assert strong.get_title(loc="left") == "straightness 1.50"
    assert "classifier guidance\ndenoiser: exact\nclassifier: mlp" in plain
    own, posterior = (
        line for line in cg.lines if line.get_color() == "black" and len(line.get_xdata()) > 1
    )
    assert [own.get_linestyle(), posterior.get_linestyle()] == ["-", "--"]


def test_the_true_density_lies_beside_the_samples(tmp_path):
    traced = {("cfg", 1.0): trace(tmp_path / "a", ["posterior"])}
    figure = figures.grid(Mixture(**FAR), "", {"cfg": METHODS["cfg"]}, traced, {})
    (beside,) = figure.axes[0].child_axes
    assert beside.get_xlabel() == "density"
    density, x = beside.lines[0].get_data()  # of class 0
    expected = np.exp(-((x + 1) ** 2) / 0.08) / np.sqrt(0.08 * np.pi)
    np.testing.assert_allclose(density, expected, rtol=1e-9)


def test_histograms_are_densities_of_all_samples(tmp_path):
    x = torch.cat([torch.full((30, 1), 0.5), torch.full((10, 1), 99.0)])  # a quarter out of sight
    save_tensors(tmp_path / "x", x=x, c=torch.zeros(40, dtype=torch.long))
    panel = Figure().subplots()
    figures._finals(panel, Mixture(**FAR), tmp_path / "x", (-2.0, 2.0))
    values, edges, _ = panel.patches[0].get_data()
    assert edges[0] <= 0.5 <= edges[-1]
    assert (values * np.diff(edges)).sum() == pytest.approx(0.75, rel=1e-5)


def test_a_level_with_several_zeros_is_dots_and_breaks_the_line():
    levels = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    zeros = [(1.0, 0.1), (0.8, 0.2), (0.6, -2.0), (0.6, 0.3), (0.6, 2.0), (0.4, 0.4), (0.0, 0.5)]
    line, dots = figures.joined(levels, zeros)  # 0.2 has none
    known = line[:, ~np.isnan(line[0])].T.tolist()
    assert known == [[1.0, 0.1], [0.8, 0.2]]
    assert sorted(map(tuple, dots.T.tolist())) == [
        *[(0.0, 0.5), (0.4, 0.4), (0.6, -2.0), (0.6, 0.3), (0.6, 2.0)]
    ]


def test_a_jump_is_not_joined_and_both_classes_zeros_are_one():
    levels = [1.0, 0.8, 0.6, 0.4]
    zeros = [(t, u) for t, u in zip(levels, (-2.0, -2.1, 0.3, 0.2), strict=True)]
    zeros += [(t, u + 1e-9) for t, u in zeros]  # as the other class finds them
    line, dots = figures.joined(levels, zeros)
    pieces = np.split(line[1], np.flatnonzero(np.isnan(line[0])))
    assert [piece[~np.isnan(piece)].tolist() for piece in pieces] == [[-2.0, -2.1], [0.3, 0.2], []]
    assert not dots.size
    line, dots = figures.joined(levels, [])
    assert line.shape == dots.shape == (2, 0)


def test_curves_average_classes_by_their_number(tmp_path):
    one = trace(tmp_path / "a", ["own", "posterior"], distance=(1.0, 3.0))
    t, mean = figures.curve(one, "own", "distance")
    assert t.tolist() == T
    assert mean.tolist() == [1.5] * len(T)
    for row in one.curves:
        if row["class"] == 1 and row["t"] == T[0]:
            row["distance"] = None
    assert figures.curve(one, "own", "distance")[1].tolist() == [1.0, *[1.5] * (len(T) - 1)]
    assert one.guide == "own"


def test_many_methods_are_split():
    many = {f"m{i}": METHODS["cfg"] for i in range(7)} | {"e": METHODS["cg"]}
    groups = figures.grouped(many)
    assert {name: len(group) for name, group in groups.items()} == {
        **{"learned_1": 6, "learned_2": 1, "exact": 1}
    }


@pytest.mark.parametrize("straightness, drawn", [(1.5, 20), (50.0, 4)])
def test_few_of_those_that_noise_bends_are_drawn(tmp_path, straightness, drawn):
    path, c = torch.randn(60, len(SIGMA), 1), torch.arange(60) % 2
    file = save_tensors(tmp_path / "paths", path=path, sigma=SIGMA, c=c)
    rows = [{"class": k, "classifier": "own", "n": 30, "straightness": straightness,
             "distance": 1.0} for k in (0, 1)]  # fmt: skip
    panel = Figure().subplots()
    figures._trajectories(panel, Traced(file=file, rows=rows, curves=[], boundaries=[]), {})
    assert [np.isnan(line.get_ydata()).sum() for line in panel.lines] == [drawn, drawn]


@pytest.mark.parametrize("arcs, asked", [((1.1, 2.3), True), ((52.0, 51.0), False)])
def test_noise_of_the_sampler_bends_whatever_the_scale_so_that_is_no_claim(arcs, asked):
    rows = {"class": 0, "classifier": "own", "n": 9, "distance": 1.0}
    traced = {("cg", scale): Traced(file=None, rows=[{**rows, "straightness": arc}], curves=[],
                                    boundaries=[])
              for scale, arc in zip((1.0, 5.0), arcs, strict=True)}  # fmt: skip
    found = {trend.about: trend.holds for trend in trends(Case("", None, traced=traced))}
    assert found == {"distance to the boundary of own": False} | (
        {"arc over chord": True} if asked else {}
    )
