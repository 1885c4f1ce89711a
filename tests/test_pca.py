"""PCA of images: the axes are those of real points alone, and panels tell what they should."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_cfg.interfaces import DataSet, complete
from lightning_cfg.reports import pca
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import DPI
from lightning_cfg.reports.points import colours_of
from lightning_cfg.runs.tensors import save_tensors

CONFIG = {"methods": {"cfg": {"guidance": {"name": "classifier_free"}}}}


def images(n, shape=(1, 4, 4), classes=10, seed=0):
    """Images whose pixels have different variances, n of each class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(n * classes, *shape, generator=generator)
    return y * torch.linspace(0.1, 2, y[0].numel()).reshape(shape), torch.arange(classes).repeat(n)


def study(folder, y, c, sets, shape=(1, 4, 4), **more):
    """The figures of one method, {(scale, stage, flow): (x, c)}."""
    own = {"shape": shape, "num_classes": 10, "real": lambda split, per_class=None: (y, c), **more}
    data = complete(SimpleNamespace(**own), DataSet, "data")
    files = {}
    for i, (key, (x, k)) in enumerate(sets.items()):
        files["cfg", *key] = save_tensors(folder / f"{i}.safetensors", x=x, c=k)
    return list(pca.draw(Case("", data, sets=files), CONFIG))


def test_axes_are_those_of_numpys_decomposition():
    y, _ = images(30)
    flat = y.flatten(1).double().numpy()
    _, s, v = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    axes = pca.Axes.of(y)
    np.testing.assert_allclose(axes.explained, s[:2] ** 2 / (s**2).sum(), rtol=1e-12)
    placed = axes.place(y).numpy()
    np.testing.assert_allclose(np.abs(placed), np.abs((flat - flat.mean(0)) @ v[:2].T), atol=1e-12)
    np.testing.assert_allclose(placed.var(0), s[:2] ** 2 / len(y), rtol=1e-12)
    rows = axes.axes.abs().argmax(0)
    assert (axes.axes[rows, [0, 1]] > 0).all()  # of the two signs always the same one


def test_points_on_a_line_have_all_their_variance_along_it():
    way = torch.tensor([3.0, 4.0, 0.0, 0.0]) / 5
    axes = pca.Axes.of(torch.linspace(-1, 1, 9)[:, None] * way + 7)
    torch.testing.assert_close(
        axes.explained, torch.tensor([1.0, 0.0]).double(), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(axes.axes[:, 0], way.double(), atol=1e-6, rtol=0)


def test_axes_and_frame_are_the_real_points_and_samples_are_told_by_their_variance(tmp_path):
    y, c = images(20)
    means = torch.stack([y[c == k].mean(0) for k in range(10)])[c]
    narrow, far = means + (y - means) / 2, torch.randn_like(y) * 100
    sets = {(s, *kind): (y, c) for s in (1.0, 2.0) for kind in (("before", ""), ("after", "all"))}
    sets[1.0, "before", ""] = narrow, c
    figures = []
    for other in (y, far):  # which changes the axes and the frame of nothing
        (drawn,) = study(tmp_path, y, c, {**sets, (2.0, "before", ""): (other, c)})
        assert (drawn.name, drawn.appendix) == ("pca_cfg", True)
        figures.append(drawn.figure)
    told = {
        panel.get_title(): [text.get_text() for text in panel.texts] for panel in figures[0].axes
    }
    assert (told["real"], told["scale 1"], told["scale 2"]) == (["100%"], ["25%"], ["100%"])
    a, b = (figure.axes[0] for figure in figures)
    assert (a.get_xlim(), a.get_ylim()) == (b.get_xlim(), b.get_ylim())
    first, second = pca.Axes.of(y).explained
    labels = f"PC 1 ({first:.1%})", f"PC 2 ({second:.1%})"
    assert (a.get_xlabel(), a.get_ylabel()) == (b.get_xlabel(), b.get_ylabel()) == labels


def test_a_figure_is_bounded_and_shows_the_same_seeds_before_and_after(tmp_path, monkeypatch):
    monkeypatch.setattr(pca, "MOST", 100)
    y, c = images(25)
    scales = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0]
    sets = {(s, *kind): (y, c) for s in scales for kind in (("before", ""), ("after", "all"))}
    (drawn,) = study(tmp_path, y, c, sets)
    panels = [panel for panel in drawn.figure.axes if panel.collections]
    counts = [len(panel.collections[0].get_offsets()) for panel in panels]
    assert set(counts) == {len(pca.evenly(250))}
    assert 50 <= counts[0] <= 100
    assert drawn.figure.get_figwidth() * DPI <= 1800
    before, after = (panels[i].collections[0].get_offsets() for i in (1, 1 + len(panels) // 2))
    np.testing.assert_array_equal(before, after)


def test_images_of_files_are_read_by_the_rows_that_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(pca, "MOST", 5)
    y = torch.arange(30).repeat(16, 1).T.reshape(30, 1, 4, 4).to(torch.uint8)
    rows = torch.arange(10, 30)
    data = SimpleNamespace(rows=lambda split: (y, rows, torch.zeros(20)), real=None)
    shown, c = pca.real(data)
    torch.testing.assert_close((shown[:, 0, 0, 0] + 1) * 127.5, torch.arange(10.0, 30.0, 4.0))
    assert len(c) == 5


@pytest.mark.parametrize(
    "more", [{"shape": (2,)}, {"shape": (3, 256, 256)}, {"has_points": False}, {"shape": (4, 8, 8)}]
)
def test_what_has_no_real_images_of_a_size_has_no_figure(tmp_path, more):
    y, c = images(2)
    assert study(tmp_path, y, c, {(1.0, "before", ""): (y, c)}, **more) == []


def test_ten_classes_have_a_colour_each_and_more_have_one_in_all():
    for most in range(1, 11):
        assert len(set(colours_of(list(range(most)), most))) == most
    assert len(set(colours_of(list(range(11)), 11))) == 1
