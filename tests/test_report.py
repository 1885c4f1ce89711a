"""The report: claims on rows whose answer is known, and what write_report leaves behind."""

import base64
import csv
import html
import json
import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch

from lightning_cfg.data import Mixture
from lightning_cfg.evaluation.tables import in_markdown
from lightning_cfg.interfaces import DataSet, complete
from lightning_cfg.reports import place_and_mass, points
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.claims import check_claims, summary
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.contact_sheet import draw as contact_sheet_of
from lightning_cfg.reports.markdown import as_html
from lightning_cfg.reports.panels import Line, few, per_name, save
from lightning_cfg.reports.study import write_report
from lightning_cfg.runs.tensors import save_tensors

N = 1000
REAL = {"outliers": 0.001, "nll_mean": -1.0, "nearest_real": 0.002, "wrong_class": 0.1}
BEFORE = {"outliers": 0.2, "nll_mean": 1.0, "nearest_real": 0.006, "wrong_class": 0.2}
AFTER = {"outliers": 0.1, "nll_mean": 0.0, "nearest_real": 0.004, "wrong_class": 0.1}


def row(method, scale, c, stage, flow="", n=N, **metrics):
    nfe = None if stage == "real" else 64.0
    front = {"method": method, "scale": scale, "class": c, "stage": stage, "flow": flow}
    spent = {"nfe": nfe, "evaluations": nfe and "model 64", "seconds": nfe and 0.25}
    return {**front, **spent, "n": n, **metrics}


def rows_with(shared=None, own=None, scale=2.0, before=BEFORE, real=REAL):
    """One method at one scale; `shared` and `own` change what AFTER has."""
    rows = []
    for c in (0, 1):
        rows.append(row("cfg", scale, c, "before", **before))
        rows.append(row("cfg", scale, c, "after", "all", **{**AFTER, **(shared or {})}))
        if own is not None:
            rows.append(row("cfg", scale, c, "after", "dedicated", **{**AFTER, **own}))
        rows.append(row("real", None, c, "real", **real))
    return rows


def verdicts(rows, about="refinement", flow="all"):
    claims = check_claims(rows)
    return {c.metric: c.holds for c in claims if c.about == about and c.flow == flow}


def test_all_claims_hold_where_everything_improves():
    assert verdicts(rows_with()) == dict.fromkeys(REAL, True)


@pytest.mark.parametrize(
    "metric, value",
    [
        ("outliers", 0.2),  # no better than before
        ("nll_mean", 1.01),  # farther above real than before
        ("nll_mean", -3.01),  # lower than real by more than before was above it
        ("nearest_real", 0.0061),
        ("wrong_class", 0.14),
    ],
)
def test_one_broken_promise_is_one_no(metric, value):
    found = verdicts(rows_with({metric: value}))
    assert found == {**dict.fromkeys(REAL, True), metric: False}


def test_wrong_class_may_exceed_real_by_two_standard_errors_of_both():
    # 2,000 samples on either side: 2 sqrt(.1 * .9 / 2000 + p (1 - p) / 2000) is .0196 at .119
    assert verdicts(rows_with({"wrong_class": 0.119}))["wrong_class"]
    assert not verdicts(rows_with({"wrong_class": 0.120}))["wrong_class"]


def test_classes_are_weighted_by_their_number():
    rows = [
        row("cfg", 2.0, 0, "before", n=900, outliers=0.1),
        row("cfg", 2.0, 1, "before", n=100, outliers=0.1),
        row("cfg", 2.0, 0, "after", "all", n=900, outliers=0.08),
        row("cfg", 2.0, 1, "after", "all", n=100, outliers=0.2),  # .092 weighted, .14 unweighted
    ]
    assert verdicts(rows) == {"outliers": True}


def test_images_are_judged_by_what_they_have():
    real = {"fd_classifier": 1.0, "class_accuracy": 0.9, "nearest_real": 5.0}
    before = {"fd_classifier": 9.0, "class_accuracy": 0.95, "nearest_real": 3.0}
    rows = [
        row("cfg", 2.0, 0, "before", **before),
        row("cfg", 2.0, 0, "after", "all", fd_classifier=8.0, class_accuracy=0.8, nearest_real=4.0),
        row("real", None, 0, "real", **real),
    ]
    assert verdicts(rows) == {"fd_classifier": True, "class_accuracy": False, "nearest_real": True}


@pytest.mark.parametrize(
    "metric, shared, own, holds",
    [
        ("outliers", 0.109, 0.10, True),
        ("outliers", 0.111, 0.10, False),
        ("outliers", 0.01, 0.10, True),
        ("nll_mean", -0.91, -0.915, True),  # gaps .09 and .085
        ("nll_mean", -0.90, -0.915, False),
        ("nll_mean", -1.2, -0.9, False),  # lower, but farther from real
        ("nearest_real", 0.0043, 0.004, True),
        ("nearest_real", 0.0045, 0.004, False),
        ("nearest_real", 0.0022, 0.004, True),
        ("nearest_real", 0.0010, 0.0021, False),  # lower than real is not better
    ],
)
def test_one_for_all_within_ten_per_cent_of_the_scales_own_flow(metric, shared, own, holds):
    rows = rows_with({metric: shared}, {metric: own})
    found = verdicts(rows, about="one for all")
    assert found == {"outliers": True, "nll_mean": True, "nearest_real": True, metric: holds}
    assert verdicts(rows, flow="dedicated").keys() == REAL.keys()


def test_scale_one_is_not_claimed_and_without_own_flow_nothing_is_compared():
    assert check_claims(rows_with(scale=1.0)) == []
    assert verdicts(rows_with(), about="one for all") == {}


def test_summary_counts_and_names_what_fails():
    held = check_claims(rows_with({"nll_mean": 0.5}, {}))
    gaps = [c.numbers for c in held if c.about == "one for all" and c.metric == "nll_mean"]
    assert gaps == ["1.5 vs 1"]  # to real's -1
    lines = summary(check_claims(rows_with({"outliers": 0.3}))).split("\n")
    assert lines[0] == "3 of 4 claims hold"
    assert len(lines) == 2
    assert "cfg at scale 2, one flow for all: outliers 20 % → 30 % (real 0.1 %)" in lines[1]


CONFIG = {
    "data": {"name": "Mixture"},
    "cases": {},
    "seed": 0,
    "methods": {
        m: {
            "models": {"model": "base"},
            "guidance": {"name": m},
            "scales": [1.0, 2.0],
            "generation": {"sampler": {"name": "heun"}},
        }
        for m in ("cfg", "gradient")
    },
    "scales": [1.0, 2.0],
    "variants": {},
    "published": [],
    "flows": {"all": [1.0], "dedicated": [2.0]},
    "sources": 300,
    "samples": 300,
    "pairs": {"k": 7},
    "tuning": None,
}
STAGES = [
    {"name": "fit base", "verb": "fit", "seconds": 100.0, "directory": "stages/a", "reused": False},
    {"name": "pair", "verb": "pair", "seconds": 3.0, "directory": "stages/b", "reused": True},
]


def study_of(data_set, directory, before, after, real, kinds=("all", "dedicated")):
    """A study's rows and sets: real data with noise, the same numbers for every class."""
    rows, sets, generator = [], {}, torch.Generator().manual_seed(0)
    y, c = data_set.real("held_out", 20)
    for method in CONFIG["methods"]:
        for scale in CONFIG["scales"]:
            present = [("before", "")] + [("after", f) for f in kinds if f == "all" or scale == 2]
            for stage, flow in present:
                x = y + 0.1 * torch.randn(y.shape, generator=generator)
                key = (method, scale, stage, flow)
                path = directory / "sets" / ("-".join(map(str, key)) + ".safetensors")
                sets[key] = save_tensors(path, x=x, c=c, seed=torch.arange(len(x)))
                scores = before if stage == "before" else after
                for k in range(data_set.num_classes):
                    rows.append(row(method, scale, k, stage, flow, n=20, **scores))
    rows += [row("real", None, k, "real", n=20, **real) for k in range(data_set.num_classes)]
    return rows, sets


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study")
    data_set = Mixture(means=[[-1.0, 0.0], [1.0, 0.0]], stds=[0.5, 0.5], labels=[0, 1])
    after = {**AFTER, "outliers": 0.3, "recall": 0.5}  # two things that became worse
    rows, sets = study_of(
        data_set, directory, {**BEFORE, "recall": 0.9}, after, {**REAL, "recall": 1.0}
    )
    (directory / "stages/a").mkdir(parents=True)
    (directory / "stages/a/manifest.json").write_text('{"packages": {"torch": "9.8.7"}}')
    settings = dict(matplotlib.rcParams)
    case = Case("", data_set, rows, sets)
    write_report(directory, title="A <small> study", config=CONFIG, cases=[case], stages=STAGES)
    assert dict(matplotlib.rcParams) == settings  # nobody else's figures change
    return directory, rows


def test_table_csv_has_the_rows_as_they_are(written):
    directory, rows = written
    with open(directory / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    front = ["method", "scale", "class", "stage", "flow", "nfe", "evaluations", "seconds", "n"]
    assert list(table[0]) == [*front, *REAL, "recall"]
    assert len(table) == len(rows)
    assert table[-1]["scale"] == table[-1]["nfe"] == ""
    assert float(table[0]["outliers"]) == 0.2


def test_report_says_what_disagrees_and_what_it_was_made_with(written):
    text = (written[0] / "report.md").read_text()
    assert "At odds with the paper's claim** that refinement improves" in text
    assert "- cfg at scale 2, one flow for all: outliers 20 % → 30 % (real 0.1 %)" in text
    assert "All 6 checks hold" in text  # one for all against own flows: equal here
    assert re.search(r"`recall` \(real 100 %\): .*gradient 2 all 90 % → 50 %", text)
    assert "`outliers` (real 0.1 %): cfg 1 all 20 % → 30 %; gradient 1 all" in text
    assert "7 nearest real neighbours" in text
    assert "it never saw 2)" in text
    assert "1 min 43 s, 1 of them taken over" in text
    assert "torch 9.8.7" in text


def test_html_holds_every_figure_and_every_row(written):
    directory, rows = written
    text = (directory / "report.html").read_text()
    names = ["against_scale"]
    names += [f"points_{m}{z}" for m in CONFIG["methods"] for z in ("", "_zoom")]
    assert {p.stem for p in (directory / "figures").iterdir()} == set(names)
    for name in names:
        image = (directory / f"figures/{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG")
        assert base64.b64encode(image).decode() in text
        assert (directory / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "A &lt;small&gt; study" in text
    (held,) = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["cases"]
    assert len(held["rows"]) == len(rows)
    for cells, want in zip(held["rows"], rows, strict=True):
        have = dict(zip(held["columns"], cells, strict=True))
        assert have == {name: want.get(name) for name in held["columns"]}
    markdown = (directory / "report.md").read_text().split("## Every class")[1]
    assert len(re.findall(r"^\| (?!method|:--)", markdown, re.MULTILINE)) == len(rows)


def test_cases_have_their_own_rows_and_figures_and_nothing_is_refined(tmp_path):
    """Two cases: each line of the table says of which, each section names it."""
    config = {**CONFIG, "data": None, "flows": {}, "flow": None}
    config["cases"] = {name: {"name": "Mixture"} for name in ("far", "close")}
    cases = []
    for name, mean in (("far", 1.0), ("close", 0.1)):
        data_set = Mixture(means=[[-mean], [mean]], stds=[0.5, 0.5], labels=[0, 1])
        rows, sets = study_of(data_set, tmp_path / name, BEFORE, AFTER, REAL, kinds=())
        for row in rows:
            row["outliers"] = mean / 10
        cases.append(Case(name, data_set, rows, sets))
    write_report(tmp_path, title="t", config=config, cases=cases, stages=[])
    with open(tmp_path / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    front = ["method", "scale", "class", "stage", "flow", "nfe", "evaluations", "seconds", "n"]
    assert list(table[0]) == ["data", *front, *REAL]
    assert [line["data"] for line in table] == ["far"] * 10 + ["close"] * 10
    assert [float(line["outliers"]) for line in table] == [0.1] * 10 + [0.01] * 10
    text = (tmp_path / "report.html").read_text()
    for name in ("far", "close"):
        figures_of = list((tmp_path / "figures" / name).glob("*.png"))
        assert figures_of
        for figure in figures_of:
            assert base64.b64encode(figure.read_bytes()).decode() in text
        assert f"<h3>{name}</h3>" in text


def test_html_of_each_kind_of_block(tmp_path):
    markdown = "# T\n\n- **a** & `b`\n- c\n\n| x | y |\n| :-- | --: |\n| 1 |  |\n\n[t](u.csv)\n"
    text = as_html(markdown, tmp_path)
    assert "<li><strong>a</strong> &amp; <code>b</code></li>\n<li>c</li>" in text
    assert "<tr><th>x</th><th>y</th></tr>\n<tr><td>1</td><td></td></tr>" in text
    assert '<p><a href="u.csv">t</a></p>' in text


def test_images_have_contact_sheets(tmp_path):
    generator = torch.Generator().manual_seed(0)
    y, c = torch.rand(30, 1, 28, 28, generator=generator) * 2 - 1, torch.arange(3).repeat(10)
    images = SimpleNamespace(
        shape=(1, 28, 28), num_classes=3, truth=None, real=lambda split, per_class=None: (y, c)
    )
    data_set = complete(images, DataSet, "data")
    scores = {"fd_classifier": 2.0, "class_accuracy": 0.9}
    rows, sets = study_of(data_set, tmp_path, scores, scores, scores, kinds=("all",))
    case = Case("", data_set, rows, sets)
    write_report(tmp_path, title="t", config=CONFIG, cases=[case], stages=[])
    sheets = {f"images_{m}_{s}" for m in CONFIG["methods"] for s in (1, 2)}
    planes = {f"pca_{m}" for m in CONFIG["methods"]}
    drawn = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert drawn == sheets | planes | {"against_scale"}


def test_samples_that_nothing_has_refined_are_not_before_anything(tmp_path):
    y, c = torch.zeros(30, 1, 28, 28), torch.arange(3).repeat(10)
    images = SimpleNamespace(
        shape=(1, 28, 28), num_classes=3, truth=None, real=lambda split, per_class=None: (y, c)
    )
    data_set, titles = complete(images, DataSet, "data"), {}
    for kinds in ((), ("all",)):
        rows, sets = study_of(data_set, tmp_path / str(len(kinds)), {}, {}, {}, kinds=kinds)
        drawn = next(contact_sheet_of(Case("", data_set, rows, sets), CONFIG))
        titles[kinds] = [panel.get_title() for panel in drawn.figure.axes]
    assert titles[()] == ["samples", "the nearest real image"]
    assert titles["all",] == ["before", "after, one for all", "the nearest real image"]


def test_contact_sheet_puts_a_seed_at_the_same_place_before_and_after():
    x = torch.linspace(-1, 1, 8)[:, None, None, None].expand(8, 3, 4, 4)
    c = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    figure = contact_sheet({"before": (x, c), "after": (-x, c)}, 2, columns=3)
    before, after = (panel.images[0].get_array() for panel in figure.axes)
    third = (x[5, 0, 0, 0] + 1) / 2  # the third of class 1: second row, third column
    assert np.allclose(before[5:9, 10:14], third)
    assert np.allclose(after[5:9, 10:14], 1 - third)
    assert [panel.get_title() for panel in figure.axes] == ["before", "after"]


def test_boundary_of_two_equal_gaussians_is_the_line_between_them():
    truth = Mixture(means=[[-1.0, 0.0], [1.0, 0.0]], stds=[0.5, 0.5], labels=[0, 1]).truth
    xs, _, margins = points.boundary(truth, (-2.0, 2.0, -2.0, 2.0), cells=11)
    # log p(0, x) - log p(1, x) = -2 x / s^2
    assert np.allclose(margins, np.broadcast_to(-2 * xs / 0.25, (1, 11, 11)))
    assert points.boundary(None, (-2.0, 2.0, -2.0, 2.0)) is None


def test_zoom_finds_where_classes_meet():
    data_set = Mixture(
        means=[[-2.0, -2.0], [1.0, 1.0], [1.1, 1.0], [2.0, -2.0]],
        stds=[0.2] * 4,
        labels=[0, 0, 1, 1],
    )
    left, right, bottom, top = points.most_entangled(*data_set.real("held_out", 2000))
    assert abs((left + right) / 2 - 1.05) < 0.15
    assert abs((bottom + top) / 2 - 1.0) < 0.15


def test_few_scales_of_many_keep_the_ends():
    assert few([1.0, 2.0]) == [1.0, 2.0]
    assert few([float(s) for s in range(9)]) == [0.0, 2.0, 4.0, 6.0, 8.0]


# What names and texts of the user's may hold


@pytest.mark.parametrize(
    "text, written",
    [
        ("fid_2k", "fid_2k"),
        ("runs/base (weights 7)", "runs/base (weights 7)"),
        ("a](b", r"a\](b"),
        ("_a_ $x$ <b> `c` **d** e|f", r"\_a\_ \$x\$ \<b\> \`c\` \*\*d\*\* e\|f"),
        ("a\n\n![x](y)", r"a !\[x\](y)"),
    ],
)
def test_a_text_in_markdown_is_no_mark_and_in_html_itself(tmp_path, text, written):
    assert in_markdown(text) == written
    page = as_html(f"# {written}\n\n| {written} |\n| :-- |\n| {written} |", tmp_path)
    for tag in ("h1", "td"):
        found = re.search(f"<{tag}>(.*)</{tag}>", page)[1]
        assert "<" not in found
        assert html.unescape(found) == " ".join(text.split())


@pytest.mark.parametrize("file", ["/etc/hostname", "figures/../secret.png", "secret.png"])
def test_html_embeds_its_own_figures_only(tmp_path, file):
    (tmp_path / "figures").mkdir()
    for name in ("secret.png", "figures/own.png"):
        (tmp_path / name).write_bytes(b"bytes")
    assert "<img" not in as_html(f"# a\n\n![x]({file})", tmp_path)
    assert "<img" in as_html("# a\n\n![x](figures/own.png)", tmp_path)


@pytest.mark.parametrize("name", ["$x", r"$\frac$", "_a", "a_b^{", "](", "<b>"])
def test_names_in_figures_are_no_tex(tmp_path, name):
    figure = per_name(
        {name: name}, lambda metric: [Line(name, [(1, 2.0), (100, 3.0)], {})], xlabel=name,
        floors={}, finish=lambda axes, metric: axes.set_xscale("log"),
    )  # fmt: skip
    save(figure, tmp_path / "figure")
    (legend,) = figure.legends
    assert legend.get_texts()[0].get_text().lstrip("\u200b") == name
    assert figure.axes[0].get_title() == name
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert any("10^{1}" in label.get_text() for label in labels)  # these are
    assert all(label.get_parse_math() for label in labels)


def test_arrows_lead_from_before_to_after_and_nothing_is_lost_at_zero():
    before = {"outliers": 0.2, "energy_distance": 0.1}
    rows = []
    for scale, after in ((1.0, (0.1, 0.05)), (2.0, (0.0, 0.01)), (3.0, (0.3, 0.0))):
        rows.append(row("cfg", scale, 0, "before", **before))
        pair = dict(zip(before, after, strict=True))
        rows.append(row("cfg", scale, 0, "after", "all", **pair))
    rows.append(row("real", None, 0, "real", outliers=0.001, energy_distance=1e-4))
    config = {"methods": {"cfg": {}}, "variants": {"a": {}}, "flows": {"all": [1, 3]}}
    [drawn] = place_and_mass.draw(Case("", None, rows), config)
    [panel] = drawn.figure.axes
    arrows = [(text.xyann, text.xy) for text in panel.texts]
    assert arrows == [((0.2, 0.1), end) for end in ((0.1, 0.05), (1 / N, 0.01), (0.3, 1e-6))]
    ends = [line for line in panel.get_lines() if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in ends] == [False, True, False]
    labels = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert labels == ["scale 1", "scale 2", "scale 3"]
    assert list(place_and_mass.draw(Case("", None, rows), config | {"variants": {}})) == []
