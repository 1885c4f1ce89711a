"""The page to explore a study: what is in it, nothing from elsewhere, and a browser on it."""

import base64
import csv
import fnmatch
import html
import html.parser
import json
import math
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image
from safetensors.torch import load_file

from lightning_cfg.data import Mixture
from lightning_cfg.diffusion.trajectories import scaled
from lightning_cfg.interfaces import DataSet, complete
from lightning_cfg.reports import page as module
from lightning_cfg.reports import page_samples
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.page_data import plain
from lightning_cfg.reports.study import write_report
from lightning_cfg.runs.names import SAMPLES, TRAJECTORIES
from lightning_cfg.runs.pngs import quantised
from lightning_cfg.runs.tensors import save_tensors

EVIL = "</script><script>alert(1)</script><!-- & \"x\" 'y' \u2028 $x$"
METHODS, SCALES, SEEDS = ("classifier_free", "gfcg", "own"), (1.0, 1.5, 2.0), (3, 4)
SIGMA = torch.tensor([80.0, 5.0, 0.5, 0.0], dtype=torch.float64)


def rows_of(seed):
    generator = np.random.default_rng(seed)
    out = []
    for method in (*METHODS, "real"):
        for scale in SCALES if method != "real" else (None,):
            for stage, flow in (("before", ""), ("after", "all")) if scale else (("real", ""),):
                for k, n in ((0, 30), (1, 10)):
                    front = {"method": method, "scale": scale, "class": k, "stage": stage}
                    spent = {"nfe": 9.0, "evaluations": "model 9", "seconds": 0.5, "n": n}
                    scores = generator.random(3).round(4)
                    named = zip(("outliers", "frechet", "wrong_class"), scores, strict=True)
                    out.append({**front, "flow": flow, **spent, **dict(named)})
    return [{"seed": seed, **row} for row in out]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two seeds in the plane, with trajectories; its names hold what ends a script."""
    folder = tmp_path_factory.mktemp("study")
    data_set = Mixture(means=[[-1.0, 0.0], [1.0, 0.0]], stds=[0.3, 0.3], labels=[0, 1])
    data_set.class_names = [EVIL, "two"]
    sets, generator = {}, torch.Generator().manual_seed(0)
    y, c = data_set.real("held_out", 30)
    for method in METHODS:
        for scale in SCALES:
            for stage, flow in (("before", ""), ("after", "all")):
                run = folder / f"stages/{method}-{scale}-{stage}"
                x = y + 0.1 * torch.randn(y.shape, generator=generator)
                if (method, scale, stage) == ("own", 2.0, "before"):
                    x[0] = 1e4  # far off
                file = save_tensors(run / SAMPLES, x=x, c=c, seed=torch.arange(len(c)))
                sets[method, scale, stage, flow] = file
            run = folder / f"stages/{method}-{scale}-before"
            path = x[:, None] + SIGMA[:, None].float() * torch.randn(1, 1, 2, generator=generator)
            save_tensors(run / TRAJECTORIES, path=path, sigma=SIGMA, c=c)
    section = {"models": {"model": "base"}, "guidance": {"name": "classifier_free"}}
    section["generation"] = {"sampler": {"name": "heun"}}
    config = {
        **{"data": {"name": "Mixture"}, "cases": {}, "seed": None, "seeds": list(SEEDS)},
        **{"methods": {m: {**section, "scales": list(SCALES)} for m in METHODS}},
        **{"names": {"own": EVIL}, "scales": list(SCALES), "variants": {}, "published": []},
        **{"flows": {"all": [1.0, 2.0]}, "sources": 9, "samples": 40, "pairs": {}, "fits": {}},
        "tuning": None,
    }
    case = Case("", data_set, [r for s in SEEDS for r in rows_of(s)], sets, seeds=list(SEEDS))
    write_report(folder, title=EVIL, config=config, cases=[case], stages=[])
    text = (folder / "report.html").read_text("utf-8")
    return SimpleNamespace(folder=folder, text=text, case=case, config=config)


class Parts(html.parser.HTMLParser):
    """Tags with their attributes, and the texts of scripts, styles and headings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._inside = [], {"script": [], "style": [], "h1": []}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in self.texts else self._inside
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag):
        self._inside = None if tag == self._inside else self._inside

    def handle_data(self, data):
        if self._inside:
            self.texts[self._inside][-1] += data


def told(text):
    """The data of a page, as its script reads them."""
    return json.loads(Parts(text).texts["script"][0])


def test_names_end_no_script_and_begin_no_tag(study):
    found = Parts(study.text)
    kinds = [attributes.get("type") for tag, attributes in found.tags if tag == "script"]
    assert kinds == ["application/json", None]
    title = " ".join(EVIL.split())  # in one line
    assert found.texts["h1"] == [title]
    assert "alert(1)" not in found.texts["script"][1]
    data = told(study.text)
    assert data["title"] == title
    (case,) = data["cases"]
    assert [one["name"] for one in case["methods"]] == ["CFG", "GFCG", EVIL]
    assert case["classes"] == [EVIL, "two"]
    assert module.as_json({EVIL: [EVIL]}).isprintable()
    assert json.loads(module.as_json({EVIL: [EVIL]})) == {EVIL: [EVIL]}


def test_nothing_comes_from_elsewhere(study):
    found = Parts(study.text)
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "embed", "video", "audio", "source", "base")
        assert attributes.get("src", "data:").startswith("data:image/png;base64,") or tag != "img"
        assert "src" not in attributes or tag == "img"
        assert not [name for name in attributes if name.startswith("on")]
        address = attributes.get("href", "#")
        assert not re.match(r"\w+:|//", address), address
    (style,) = found.texts["style"]
    assert "@import" not in style
    assert "url(" not in style
    script = found.texts["script"][1].replace("http://www.w3.org/2000/svg", "")  # a name, not read
    assert not re.search(r"https?://|fetch\(|XMLHttp|import\(|innerHTML|eval\(", script)
    (policy,) = [a["content"] for t, a in found.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:")
    names = {attributes.get("id") for _, attributes in found.tags}
    anchors = [attributes.get("href", "") for tag, attributes in found.tags if tag == "a"]
    assert {anchor[1:] for anchor in anchors if anchor.startswith("#")} <= names


def test_every_number_is_that_of_the_table(study):
    (case,) = told(study.text)["cases"]
    with open(study.folder / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert case["columns"] == list(table[0])
    assert len(case["rows"]) == len(table) == len(SEEDS) * (3 * 3 * 2 * 2 + 2)
    for have, want in zip(case["rows"], table, strict=True):
        for value, text in zip(have, want.values(), strict=True):
            assert (value is None and text == "") or str(value) == text or value == float(text)
    for row in case["averages"]:
        same = [t for t in table if t["method"] == row["method"] and t["flow"] == row["flow"]]
        same = [t for t in same if (t["scale"] or None) in (row["scale"] and f"{row['scale']:g}",)]
        same = [t for t in same if t["stage"] == row["stage"]]
        for metric in ("outliers", "frechet", "wrong_class"):
            means = []
            for seed in SEEDS:
                own = [t for t in same if int(t["seed"]) == seed]
                weights = [int(t["n"]) for t in own]
                means.append(np.average([float(t[metric]) for t in own], weights=weights))
            assert row["values"][metric] == pytest.approx(np.mean(means), rel=1e-5)
            half = 12.706 * abs(means[0] - means[1]) / 2  # t(.975, 1) s / sqrt(2)
            assert row["half"][metric] == pytest.approx(half, rel=1e-4)
        assert row["n"] == 40
    assert [plain(v) for v in (math.nan, math.inf, 1 / 3, "a", 7)] == [None, None, 0.333333, "a", 7]


def test_many_rows_are_left_to_the_table(study, monkeypatch):
    from lightning_cfg.reports import page_data

    monkeypatch.setattr(page_data, "MOST_ROWS", 5)
    assert page_data.table_of(study.case, study.config)["rows"] == []


def coordinates(text, low, high):
    steps = np.frombuffer(base64.b64decode(text), "<i2").reshape(-1, len(low)).astype(float)
    steps[steps == page_samples.OUTSIDE] = np.nan
    low, high = np.array(low), np.array(high)
    return low + (steps / 32767 + 1) / 2 * (high - low)


def test_samples_are_those_of_the_sets_of_the_same_seeds(study):
    held = told(study.text)["cases"][0]["samples"]
    assert (held["kind"], held["dimension"]) == ("points", 2)
    assert len(held["entries"]) == 9
    assert len(held["real"]["c"]) > 100
    for entry in held["entries"]:
        assert entry["c"] == [0] * 30 + [1] * 30
        for flow, text in entry["sets"].items():
            stage = "after" if flow else "before"
            file = study.case.sets[entry["method"], entry["scale"], stage, flow]
            x = load_file(file)["x"].numpy()
            seen = coordinates(text, held["low"], held["high"])
            far = (entry["method"], entry["scale"], flow) == ("own", 2.0, "")
            assert np.isnan(seen[0]).all() == far
            step = (np.array(held["high"]) - held["low"]) / 65534
            assert np.nanmax(np.abs(seen - x) / step) < 0.6
            assert np.isnan(seen).any(1).sum() <= 3
    assert held["high"][0] < 10


def test_trajectories_are_those_of_the_run_in_u(study):
    held = told(study.text)["cases"][0]["trajectories"]
    assert len(held["entries"]) == 9
    entry = held["entries"][0]
    folder = study.folder / f"stages/{entry['method']}-{entry['scale']}-before"
    found = load_file(folder / TRAJECTORIES)
    rows = [i for k in (0, 1) for i in np.flatnonzero(found["c"].numpy() == k)[:30]]
    expected = scaled(found["path"][rows], SIGMA).reshape(-1, 2).numpy()
    seen = coordinates(entry["u"], held["low"], held["high"])
    assert seen.shape == expected.shape
    assert np.nanmax(np.abs(seen - expected)) < (held["high"][0] - held["low"][0]) / 6e4
    assert entry["sigma"] == SIGMA.tolist()
    assert entry["t"][-1] == 0
    assert entry["t"] == sorted(entry["t"], reverse=True)


def images_case(folder, channels=1, side=8):
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(60, channels, side, side, generator=generator) * 2 - 1
    c = torch.arange(3).repeat(20)
    made = SimpleNamespace(
        shape=(channels, side, side), num_classes=3, truth=None,
        real=lambda split, per_class=None: (y, c),
    )  # fmt: skip
    sets = {}
    for stage, flow in (("before", ""), ("after", "all")):
        file = folder / f"{stage}.safetensors"
        x = y.flip(2) if stage == "before" else y
        sets["cfg", 2.0, stage, flow] = save_tensors(file, x=x, c=c, seed=torch.arange(60))
    return Case("", complete(made, DataSet, "data"), [], sets), y, c


def test_images_lie_beside_the_nearest_real_ones(tmp_path):
    case, y, c = images_case(tmp_path)
    held = page_samples.samples_of(case, {}, 10**6)
    assert (held["kind"], held["width"], held["height"]) == ("images", 8, 8)
    (entry,) = held["entries"]
    assert entry["c"] == [0] * 6 + [1] * 6 + [2] * 6
    rows = torch.cat([(c == k).nonzero()[:6, 0] for k in range(3)])
    for text, expected in (
        (entry["sets"][""], y.flip(2)[rows]),
        (entry["sets"]["all"], y[rows]),
        (entry["nearest"]["all"], y[rows]),
    ):
        picture = tmp_path / "x.png"
        picture.write_bytes(base64.b64decode(text.partition(",")[2]))
        pixels = np.array(Image.open(picture))
        assert (pixels == torch.cat(list(quantised(expected)), 2)[0].numpy()).all()
    room = sum(map(len, (*entry["sets"].values(), *entry["nearest"].values()))) - 1
    (fewer,) = page_samples.samples_of(case, {}, room)["entries"]
    assert fewer["c"] == [0] * 4 + [1] * 4 + [2] * 4
    assert page_samples.samples_of(case, {}, 10)["entries"] == []


def test_large_images_are_made_smaller(tmp_path):
    case, *_ = images_case(tmp_path, channels=3, side=100)
    held = page_samples.samples_of(case, {}, 10**7)
    assert (held["width"], held["height"]) == (50, 50)
    text = held["entries"][0]["sets"][""]
    (tmp_path / "x.png").write_bytes(base64.b64decode(text.partition(",")[2]))
    assert Image.open(tmp_path / "x.png").size == (50 * 18, 50)


def test_what_has_no_room_is_a_link_and_the_page_stays_small(study, monkeypatch):
    assert len(study.text.encode()) < 5_000_000
    assert module.LIMIT < 5_000_000
    assert study.text.count("<img") >= 5
    monkeypatch.setattr(module, "LIMIT", module.FRAME + 200_000)
    markdown = (study.folder / "report.md").read_text()
    text = module.page(markdown, study.folder, title="t", cases=[study.case], config=study.config)
    assert len(text.encode()) < 200_000 + module.FRAME
    links = re.findall(r'<a href="(figures/[\w.]+\.png)">', text)
    assert links
    assert all((study.folder / link).is_file() for link in links)
    frame = module._filled(dict.fromkeys(("policy", "title", "style", "heading", "finding"), ""))
    assert len(frame) < module.FRAME


def test_the_finding_stands_first(study):
    main = study.text.partition("<main>")[2]
    finding = main[main.index('id="finding"') : main.index('id="exploring"')]
    assert "claims about it hold" in finding
    assert finding.count("<img") == 1
    _, listed, *_ = (study.folder / "report.md").read_text().split("\n\n")  # below the title
    told = [html.unescape(line) for line in re.findall("<li>(.*?)</li>", finding)]
    assert [line.replace("\\", "") for line in listed.split("\n")] == [
        f"- {' '.join(sentence.split())}" for sentence in told
    ]
    assert "Class errors against distance" in finding
    assert study.text.count("Class errors against distance to held-out real data:") == 2  # alt
    assert study.text.index("Appendix: every method") > study.text.index('id="report"')
    appendix = study.text[study.text.index("<section id=appendix-every-method>") :]
    assert appendix.count("<figure>") == 6  # points of three methods, and zoomed


def test_an_installation_has_script_and_style():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["lightning_cfg"]
    package = Path(module.__file__).parents[1]
    files = [path.relative_to(package) for path in (package / "reports/web").iterdir()]
    assert {path.suffix for path in files} == {".js", ".css", ".html"}
    for path in files:
        assert any(fnmatch.fnmatch(path.as_posix(), pattern) for pattern in patterns)


# In a browser

WATCH = "<script>window.faults=[];addEventListener('error',e=>faults.push(e.message))</script>"
CLICKS = """<script>
(async () => {
  const $ = (id) => document.getElementById(id), seen = {};
  const pick = (id, value) => {
    $(id).value = value; $(id).dispatchEvent(new Event('change', {bubbles: true}));
  };
  const words = () => $('chart-says').textContent;
  const inked = (id) => {
    const canvas = document.querySelector(`#${id} canvas`);
    const context = canvas.getContext('2d');
    return context.getImageData(0, 0, canvas.width, canvas.height).data.join();
  };
  const column = () => [...document.querySelectorAll('#sortable tbody tr td:last-child')].map(
    (cell) => cell.textContent);
  seen.first = words();
  pick('method', 'gfcg'); pick('scale', '1.5'); pick('metric', 'frechet');
  seen.chosen = words();
  pick('method', 'own'); seen.own = words(); pick('method', 'gfcg');
  const start = inked('samples-drawn');
  $('cut').value = 0; $('cut').dispatchEvent(new Event('input'));
  seen.moved = start !== inked('samples-drawn');
  const end = inked('trajectories-drawn');
  $('level').value = 0; $('level').dispatchEvent(new Event('input'));
  seen.noise = $('level-says').textContent; seen.drawn = end !== inked('trajectories-drawn');
  $('play').click(); seen.playing = $('play').textContent;
  await new Promise((done) => setTimeout(done, 6000));
  seen.played = [$('play').textContent, $('level-says').textContent];
  const last = () => document.querySelector('#sortable th:last-child button');
  last().click(); seen.up = column(); last().click(); seen.down = column();
  seen.sorted = document.querySelector('#sortable th:last-child').getAttribute('aria-sort');
  seen.focused = document.activeElement === last();
  $('only').click(); seen.only = document.querySelectorAll('#sortable tbody tr').length;
  $('each').click(); seen.each = document.querySelectorAll('#sortable tbody tr').length;
  $('theme').click(); seen.theme = document.documentElement.dataset.theme;
  const figure = document.querySelector('.enlarge'); figure.click();
  seen.large = figure.getAttribute('aria-expanded');
  document.querySelectorAll('#chart circle')[0].dispatchEvent(new Event('click'));
  seen.clicked = $('scale').value;
  seen.wide = document.documentElement.scrollWidth - innerWidth;
  seen.faults = window.faults; seen.scripts = document.scripts.length;
  const out = document.createElement('pre'); out.id = 'outcome';
  out.textContent = JSON.stringify(seen); document.body.append(out);
})().catch((error) => document.body.append(`FAULT ${error}`));
</script>"""


@pytest.mark.parametrize("width", [420, 1400])
def test_a_browser_chooses_moves_plays_and_sorts(study, tmp_path, width):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(names)}")
    text = study.text.replace("<head>", f"<head>{WATCH}", 1)
    file = tmp_path / "page.html"
    file.write_text(text.replace("</body>", f"{CLICKS}</body>"), "utf-8")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words += [
        f"--window-size={width},900",
        "--virtual-time-budget=20000",
        f"--user-data-dir={tmp_path}/of",
    ]
    done = subprocess.run(
        [*words, file.as_uri()], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    outcome = re.search('<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert outcome, done.stdout[-2000:] + done.stderr[-2000:]
    seen = json.loads(html.unescape(outcome[1]))
    assert seen["faults"] == []
    assert seen["first"].startswith("outliers: ")
    assert "CFG at scale 2:" in seen["first"]
    (row,) = [
        row for row in told(study.text)["cases"][0]["averages"]
        if (row["method"], row["scale"], row["stage"]) == ("gfcg", 1.5, "before")
    ]  # fmt: skip
    value, half = (f"{row[key]['frechet']:.3g}" for key in ("values", "half"))
    assert f"GFCG at scale 1.5: before {value} ± {half}, after" in seen["chosen"]
    assert f"{EVIL} at scale 1.5" in seen["own"]
    assert seen["moved"]
    assert seen["drawn"]
    assert " = 80, t/T = 0.9" in seen["noise"]
    assert seen["playing"] == "Pause"
    assert seen["played"][0] == "Play"
    assert seen["played"][1].endswith(" = 0, t/T = 0")
    shares = [float(text.split()[0]) for text in seen["up"]]
    assert shares == sorted(shares)
    assert shares[::-1] == [float(text.split()[0]) for text in seen["down"]]
    assert (seen["sorted"], seen["focused"]) == ("descending", True)
    assert (seen["only"], seen["each"]) == (7, 2 * (3 * 2 * 2 + 2))
    assert seen["theme"] == "dark"
    assert seen["large"] == "true"
    assert seen["clicked"] == "1"
    assert seen["wide"] <= 0
