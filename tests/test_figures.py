"""Figures that can be read: few lines with colours of their own, names, ranges, legends, widths."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cfg.metrics.over_seeds import OverSeeds
from lightning_cfg.reports import against_scale, comparison, names, points, variants
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.comparison import foremost
from lightning_cfg.reports.contact_sheet import contact_sheet, fitting
from lightning_cfg.reports.nearest import nearest
from lightning_cfg.reports.panels import (
    DPI,
    GREY,
    MOST_LINES,
    Line,
    apart,
    clear_of,
    per_name,
    png_of,
    save,
    styles,
)
from lightning_cfg.reports.rows import Cells, Rows

WIDEST = 1800  # pixels
METHODS = [
    *("classifier_free", "gfcg", "gfcg_autoguidance", "interval", "cads", "rescale", "own_one"),
    *(f"method_{i}_with_a_name_that_is_longer" for i in range(10)),
]


def front(method, scale, stage="before", flow=""):
    spent = {"nfe": 9.0, "evaluations": "model 9", "seconds": 0.1, "n": 5000}
    return {"method": method, "scale": scale, "class": 0, "stage": stage, "flow": flow, **spent}


def many(flows=()) -> Case:
    """17 methods: the later in the list, the more class errors; `rescale` is far off."""
    rows = []
    for i, method in enumerate(METHODS):
        for scale in (1.0, 2.0, 4.0):
            for stage, flow in (("before", ""), *(("after", flow) for flow in flows)):
                rows.append(
                    front(method, scale, stage, flow)
                    | {"frechet": 0.1 * scale * (1000 if method == "rescale" else 1)}
                    | {"wrong_class": (0.01 + 0.01 * i) / scale, "recall": 1 - 0.1 * scale}
                )
    rows.append({**front("real", None, "real"), "frechet": 0.01, "wrong_class": 0.01, "recall": 1})
    sets = {(r["method"], r["scale"], r["stage"], r["flow"]): None for r in rows[:-1]}
    return Case("", None, rows, sets)


def config_of(methods=METHODS, **more):
    section = {"models": {"model": "base"}, "guidance": {"name": "classifier_free"}}
    config = {"methods": dict.fromkeys(methods, section), "variants": {}, "flows": {}}
    return {**config, "published": [], "tuning": None, **more}


def drawn_by(kind, case, config):
    return {one.name: one.figure for one in kind.draw(case, config)}


def coloured(panel):
    """The lines over what is swept, without real data's level."""
    return [line for line in panel.get_lines() if line.get_label()[:1] != "_"][: MOST_LINES + 1]


def test_keys_have_the_names_that_a_person_would_write():
    written = {
        **{
            "classifier_free": "CFG",
            "gfcg_autoguidance": "GFCG + autoguidance",
            "cg_mlp": "CG MLP",
        },
        **{"exact_classifier_free": "CFG, exact", "cfg_plus_plus": "CFG++", "my_way": "my way"},
    }
    assert {key: names.usual(key) for key in written} == written
    assert all(names.usual(key) for key in ("_", "exact_", "$x", "a"))
    columns = {"fd_classifier_vs_bank": "Fréchet distance, classifier, to bank"}
    columns |= {"recall_k3_pixels": "recall, k 3, pixels", "my_metric": "my metric"}
    assert {column: names.of_column(column) for column in columns} == columns


def test_a_studys_own_names_win_and_no_two_are_alike():
    config = {"methods": {"cfg": {}, "classifier_free": {}, "gfcg": {}}, "names": {"gfcg": "mine"}}
    told = {"cfg": "CFG (cfg)", "classifier_free": "CFG (classifier_free)", "gfcg": "mine"}
    assert names.of_methods(config) == told
    flows = names.of_flows({"variants": {"one_step": {}}, "names": {"one_step": "one step, twice"}})
    assert flows[""] == "before"
    assert flows["one_step"] == "one step, twice"


def test_six_lines_a_panel_have_colours_and_the_others_are_grey_and_named():
    case, config = many(), config_of()
    called = names.of_methods(config)
    figures = drawn_by(against_scale, case, config) | drawn_by(comparison, case, config)
    assert set(figures) == {"against_scale", "errors_distance", "fidelity_diversity"}
    for figure in figures.values():
        panel = figure.axes[0]
        legend = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
        lines = {line.get_label(): line for line in panel.get_lines()}
        own = [name for name in legend if name != "real"]
        assert own == [called[method] for method in METHODS[:6] if method != "rescale"] + [
            "own one"
        ]
        assert len({lines[name].get_color() for name in own}) == 6
        grey = [line for line in panel.get_lines() if line.get_color() == GREY]
        told = {text.get_text().lstrip("↑↓ ")[:20] for text in panel.texts}
        assert len(grey) == 11
        assert told == {called[method][:20] for method in METHODS if called[method] not in own}


def test_the_range_is_that_of_what_has_colours():
    figure = drawn_by(against_scale, many(), config_of())["against_scale"]
    panel = next(axes for axes in figure.axes if axes.get_title().startswith("Fréchet"))
    high = panel.get_ylim()[1]
    assert 0.4 <= high < 1  # rescale has 400
    assert [text.get_text() for text in panel.texts if "rescaled" in text.get_text()] == [
        "↑ CFG, rescaled"
    ]


def test_axes_have_units_and_figures_the_number_of_samples():
    figure = drawn_by(against_scale, many(), config_of())["against_scale"]
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert panels["recall ↑"].get_xlabel() == "guidance scale"
    ticks = panels["wrong class"].yaxis.get_major_formatter()
    assert ticks(0.05, 0) == "5 %"
    assert figure.legends[0].get_title().get_text() == "N = 5,000 a point"
    value = OverSeeds({0: 0.1, 1: 0.2, 2: 0.3})
    counted = Rows({("a", 1.0, "before", ""): {"n": 100.0, "m": value}}).counted
    assert counted.split("\n") == ["N = 100 a point", "mean of 3 seeds", "95 % intervals (t)"]


@pytest.mark.parametrize("letters", [3, 25, 64])
def test_no_legend_is_cut_and_no_page_is_wider_than_1800_pixels(tmp_path, letters):
    own = {method: f"{i} {'w' * letters}" for i, method in enumerate(METHODS)}
    config = config_of(names=own, variants={f"v{i}": {} for i in range(9)})
    case = many(flows=("all", *config["variants"]))
    figures = drawn_by(against_scale, case, config) | drawn_by(comparison, case, config)
    one = config | {"methods": {"gfcg": config["methods"]["gfcg"]}}
    figures |= drawn_by(variants, case, one)
    assert len(figures) == 5
    for name, figure in figures.items():
        save(figure, tmp_path / name)
        assert Image.open(tmp_path / f"{name}.png").width <= WIDEST
        box = figure.legends[0].get_window_extent()
        width, height = figure.get_size_inches() * figure.dpi
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1


@pytest.mark.parametrize("flows", [(), ("all",)])
def test_titles_and_classes_of_points_are_within_the_figure_and_beside_the_panels(flows):
    x, c = torch.rand(40, 2), torch.arange(40) % 4
    kinds = [("before", ""), *(("after", flow) for flow in flows)]
    sets = Cells({("cfg", scale, *kind): None for scale in (1.0, 2.0) for kind in kinds})
    figure = points.points((x, c), sets, (0.0, 1.0, 0.0, 1.0), read=lambda file: (x, c))
    png_of(figure)  # which places everything
    width, height = figure.get_size_inches() * figure.dpi
    panels = [axes for axes in figure.axes if axes.axison]
    for axes in panels:
        box = axes.title.get_window_extent()
        assert box.y1 <= height
        assert box.x0 >= 0
        assert box.x1 <= width
    (legend,) = figure.legends or [a.get_legend() for a in figure.axes if a.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == [f"class {k}" for k in range(4)]
    box = legend.get_window_extent()
    assert box.y0 >= 0
    assert not any(box.overlaps(axes.get_window_extent()) for axes in panels)


def test_names_at_the_ends_of_lines_do_not_cover_each_other():
    ends = [(1.0, y, str(y)) for y in (0.5, 0.5, 0.51, -3.0, 9.0, 0.98, 0.99)]
    moved = apart(ends, 2.0)
    places = [y for _, y, _ in moved]
    assert [name for *_, name in moved] == ["-3.0", "0.5", "0.5", "0.51", "0.98", "0.99", "9.0"]
    assert np.diff(places).min() > 0.06  # a letter of 6 points in a panel of some 1.5 inches
    assert places[0] >= 0
    assert places[-1] <= 1
    assert len(apart([(1.0, 0.5, str(i)) for i in range(60)], 1.0)) == 60


def test_a_name_within_a_panel_goes_to_the_nearest_place_that_is_free():
    placed = [(1.0, 0.5, "beside"), (0.5, 0.52, "near")]
    alone = clear_of(placed, (0.1, 0.5, "a"), 4.0, 4.0)
    assert alone == (0.1, 0.5, "a")  # it ends before the others begin
    _, y, _ = clear_of(placed, (0.45, 0.5, "GFCG"), 4.0, 4.0)
    assert y == pytest.approx(0.52 - 1.2 * 6 / 72 / 3)  # a line below "near", which is nearest
    long = clear_of(placed, (0.45, 0.5, "a name that reaches the frame"), 2.0, 4.0)
    assert abs(long[1] - 0.5) > 0.033
    assert abs(long[1] - 0.52) > 0.033
    assert clear_of(placed, (0.45, 7.0, "GFCG"), 4.0, 4.0)[1] == 1.0
    full = [(0.5, i / 100, "x") for i in range(101)]
    assert clear_of(full, (0.5, 0.3, "y"), 4.0, 4.0)[1] == 0.3


def test_colours_go_to_the_first_method_and_to_the_fewest_errors_at_matched_distance():
    """b is closer than a at every scale, but with more errors at a's own distances."""
    order = "abcdefgh"
    rows = {}
    for i, method in enumerate(order):
        for scale in (1.0, 2.0):
            wrong = 0.5 if method == "b" else (8 - i) / 100
            row = {"frechet": scale - (method == "b") / 2, "wrong_class": wrong / scale, "n": 9}
            rows[method, scale, "before", ""] = row
    assert foremost(Rows(rows), list(order), "frechet", "wrong_class") == list("adefgh")
    assert foremost(Rows(rows), list(order), None, "wrong_class") == list("abcdef")
    assert foremost(Rows(rows), list("abc"), "frechet", "wrong_class") == list("abc")


@pytest.mark.parametrize("places", [(1.0, 2.0), ("euler", "heun")])
def test_more_lines_than_colours_stay_apart(places):
    looks = list(styles([str(i) for i in range(6)]).values())
    for key in ("color", "ls"):
        assert len({str(look[key]) for look in looks}) == 6
    points = list(zip(places, (2.0, 3.0), strict=True))
    figure = per_name(
        {"m": "m"}, lambda _: [Line(str(i), points, {}) for i in range(8)], xlabel="x", floors={},
        first=["7"],
    )  # fmt: skip
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*"01234", "7"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "6"]


# Images


@pytest.mark.parametrize("kept", [7, 40, 500])
def test_the_nearest_real_image_is_that_of_brute_force(kept):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 1, 4, 4, generator=generator)
    y = torch.randn(97, 1, 4, 4, generator=generator)

    class Points:
        rows = None

        def real(self, split):
            assert split == "bank"
            return y, torch.zeros(len(y))

    some = y[:: -(-len(y) // kept)]
    expected = some[torch.cdist(x.flatten(1), some.flatten(1)).argmin(1)]
    assert torch.equal(nearest(x, Points(), kept), expected)


def test_images_that_are_read_from_files_come_in_pieces(monkeypatch):
    from lightning_cfg.reports import nearest as module

    monkeypatch.setattr(module, "CHUNK", 5)
    generator = torch.Generator().manual_seed(1)
    bytes_ = torch.randint(0, 256, (33, 3, 4, 4), generator=generator, dtype=torch.uint8)

    class Files:
        largest = 0

        def rows(self, split):
            return self, torch.arange(33).flip(0), torch.zeros(33)

        def __getitem__(self, rows):
            self.largest = max(self.largest, len(rows))
            return bytes_[rows]

    x, files = bytes_[[3, 30]].float() / 127.5 - 1, Files()
    assert torch.allclose(nearest(x + 0.01, files), x)
    assert files.largest == 5


@pytest.mark.parametrize("side, sheets", [(28, 2), (64, 4), (256, 4), (512, 3)])
def test_sheets_of_large_images_have_fewer_columns(side, sheets):
    columns = fitting(sheets, side, side)
    x = torch.zeros(10 * columns, 3, side, side)
    c = torch.arange(10).repeat_interleave(columns)
    figure = contact_sheet({str(i): (x, c) for i in range(sheets)}, 10, columns=columns)
    assert figure.get_figwidth() * DPI <= WIDEST
    assert columns == 6 or fitting(sheets, side, side // 2) > columns
