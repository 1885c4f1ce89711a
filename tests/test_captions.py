"""Captions of two digits: what they say, what is told of them, read of them and drawn for them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT
from helpers.digits import write
from torch import Tensor, nn

from lightning_cfg.config import load
from lightning_cfg.data.captions import WORDS, Captions
from lightning_cfg.diffusion.contrastive import Contrastive, contrastive
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.side_by_side import SideBySide
from lightning_cfg.guidance.gfcg import confusion
from lightning_cfg.metrics.judged import class_accuracy, text_alignment
from lightning_cfg.metrics.meaning import kind_of, meaning
from lightning_cfg.nets import CaptionUNet, DualEncoder
from lightning_cfg.nets.text import TextEmbedding
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.nearest import classes_shown
from lightning_cfg.reports.resampled import meanings, resampled, told
from lightning_cfg.reports.rows import Cell, Cells
from lightning_cfg.runs.checkpoints import build_model, restore
from lightning_cfg.runs.names import METRICS, RIGHT, SAMPLES
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.studies.graph import Output
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.study import _check, _data_sets, _graphs, study

STUDY = ROOT / "conf/studies/captions.yaml"
NAMES = ["zero and One", "one and zero", "the digits zero one", "two"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """MNIST of random pixels, so that every digit is known again, and a run of each network."""
    root = tmp_path_factory.mktemp("captions")
    labels = {"train": np.arange(70) % 10, "t10k": np.arange(40) % 10}
    images = write(root, labels=labels)
    data = {"name": "Captions", "root": str(root), "pairs": "shown"}
    learner = {"name": "Diffusion", "ema_half_life": [100]}
    steps = {"batch_size": 4, "trainer": {"max_steps": 1, "accelerator": "cpu"}}
    base = fit(
        data=data, net={"name": "CaptionUNet", "channels": 8, "text_width": 8},
        model={"name": "EDM"}, learner=learner, run_dir=str(root / "base"), **steps,
    )  # fmt: skip
    encoder = fit(
        data=data, net={"name": "DualEncoder", "channels": 4, "width": 8, "text_width": 8},
        model={"name": "Contrastive", "noise": 0.3},
        learner={**learner, "name": "Classification"}, run_dir=str(root / "encoder"), **steps,
    )  # fmt: skip
    judge = fit(
        data={"name": "MNIST", "root": str(root)}, net={"name": "ConvNet", "channels": 4},
        model={"name": "NoisyClassifier", "clean": True},
        learner={**learner, "name": "Classification"}, run_dir=str(root / "judge"), **steps,
    )  # fmt: skip
    samples = generate(
        models={"model": str(base), "classifier": str(encoder)},
        guidance={"name": "gfcg", "scale": 2.0}, sampler={"name": "euler", "steps": 2}, n=12,
        class_label=[7, "nine and then zero"], run_dir=str(root / "samples"),
    )  # fmt: skip
    return SimpleNamespace(
        root=root, images=images, labels=labels, data=data, base=base, encoder=encoder,
        judge=judge, samples=samples,
    )  # fmt: skip


def test_each_half_is_a_digit_that_the_prompt_names(made):
    data = Captions(root=str(made.root))
    for split, name in (("bank", "train"), ("held_out", "t10k")):
        number = {y.tobytes(): k for y, k in zip(made.images[name], made.labels[name], strict=True)}
        y, rows, c = data.rows(split, per_class=1)
        assert c.tolist() == list(range(400))
        for picture, prompt in zip(y[rows], c.tolist(), strict=True):
            a, b = (number[half.numpy().tobytes()] for half in picture[0].split(28, 1))
            said = [word for word in data.class_names[prompt].split() if word in WORDS]
            assert said == [WORDS[a], WORDS[b]]
            assert data.parts[prompt].tolist() == [a, b]


def test_every_digit_comes_on_either_side(made):
    y, _ = Captions(root=str(made.root))._held_out
    for side in y[:, 0].split(28, 2):
        assert len(side.flatten(1).unique(dim=0)) == len(made.labels["t10k"])


def test_two_of_one_digit_are_two_pictures(made):
    data = Captions(root=str(made.root))
    for y, c in (data._bank, data._held_out):
        twice = data.parts[c, 0] == data.parts[c, 1]
        left, right = y[twice].split(28, 3)
        assert (left != right).flatten(1).any(1).all()


def test_a_fifth_of_the_pairs_is_never_shown(made):
    shown, unseen = (Captions(root=str(made.root), pairs=pairs) for pairs in ("shown", "unseen"))
    assert (len(shown.drawn), len(unseen.drawn)) == (320, 80)
    assert sorted([*shown.drawn.tolist(), *unseen.drawn.tolist()]) == list(range(400))
    for data in (shown, unseen):
        for split in ("bank", "held_out"):
            assert data.rows(split)[2].unique().tolist() == data.drawn.tolist()
    assert unseen.real("held_out", 2)[1].bincount(minlength=400).tolist() == [
        2 * (k in unseen.drawn) for k in range(400)
    ]
    with pytest.raises(UserError, match="between 1 and 25, the images of class 1 in split held"):
        unseen.real("held_out", 26)
    pairs = unseen.parts[unseen.drawn].unique(dim=0)
    for side in pairs.T:  # so that each word is known on each side
        assert side.bincount().tolist() == [2] * 10


def test_prompts_of_one_meaning_are_not_taken_for_each_other():
    data = Captions()
    said = [tuple(word for word in name.split() if word in WORDS) for name in data.class_names]
    for i, j in [(0, 100), (1, 10), (17, 317), (17, 318)]:
        assert data.confusable[i, j] == (said[i] != said[j])
    assert data.confusable.sum(1).eq(396).all()
    assert meanings(data).bincount().tolist() == [4] * 100


# Texts


def test_a_text_is_its_words_in_their_order():
    torch.manual_seed(0)
    text = TextEmbedding(5, width=8, layers=1)
    text.take(NAMES)
    assert text.tokens.shape == (5, 4)
    assert text.tokens[-1].tolist() == [0] * 4  # NULL
    vectors = text(torch.tensor([0, 1, 3, -1]))
    torch.testing.assert_close(vectors[-1:], text(torch.tensor([4])))
    apart = (vectors[:, None] - vectors).norm(dim=2) + torch.eye(4)
    assert apart.min() > 1e-3  # "zero and one" is not "one and zero"
    h = text.words(text.tokens[2]) + text.places
    expected = text.leave(text.layers.layers[0](h[None])[0].mean(0))
    torch.testing.assert_close(text(torch.tensor([2]))[0], expected)


def test_what_is_no_text():
    text = TextEmbedding(5, width=8, layers=1)
    with pytest.raises(UserError, match="has 65 words, more than 64"):
        text.take(["a " * 65])
    with pytest.raises(UserError, match="divisible by 4, got 6"):
        TextEmbedding(5, width=6, layers=1)
    config = {"net": {"name": "CaptionUNet", "channels": 8}, "model": {"name": "EDM"}}
    with pytest.raises(UserError, match="net CaptionUNet reads the classes' names"):
        build_model(config, (1, 8, 8), 3)
    with pytest.raises(UserError, match="have no classes"):
        CaptionUNet((1, 8, 8), 0)


def test_a_checkpoint_knows_its_words(made):
    model = restore(made.base)
    assert model.class_names == Captions().class_names
    c = torch.tensor([3, 399, -1])
    x, sigma = torch.randn(3, *model.shape), torch.ones(3)
    torch.testing.assert_close(
        model(x, sigma, c), model(x, sigma, model.class_vectors(c)), rtol=1e-5, atol=1e-5
    )
    other = model(x, sigma, torch.tensor([103, 299, -1]))  # other wordings: 3 means what 103 does
    assert (model(x, sigma, c) - other).flatten(1).norm(dim=1)[2] < 1e-4  # NULL both times


# Pictures and texts


def test_clips_loss():
    """Of different prompts it is CLIP's, and of one twice both are right."""
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 6, generator=g), torch.arange(6)
    own = F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
    torch.testing.assert_close(contrastive(logits, target).mean(), sum(own) / 2)
    c = torch.tensor([4, 9, 4])
    p, q = logits[:3, :3].softmax(1), logits[:3, :3].softmax(0)
    rows = torch.stack([p[0, 0] + p[0, 2], p[1, 1], p[2, 0] + p[2, 2]])
    columns = torch.stack([q[0, 0] + q[2, 0], q[1, 1], q[0, 2] + q[2, 2]])
    expected = -(rows.log() + columns.log()) / 2
    torch.testing.assert_close(contrastive(logits[:3, :3], c), expected)


class Fixed(nn.Module):
    """Logits that are given, and texts."""

    null_class, class_vectors = False, None

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.vectors = nn.Parameter(F.normalize(vectors))

    def texts(self) -> Tensor:
        return self.vectors

    features = staticmethod(lambda x: F.normalize(x))

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None) -> Tensor:
        return 3 * self.features(x) @ self.vectors.T


def test_prompts_that_no_batch_has_are_not_pushed_away():
    model = Contrastive(Fixed(torch.randn(5, 4, generator=torch.Generator().manual_seed(0))))
    model.loss(
        torch.randn(6, 4), torch.tensor([0, 1, 3, 3, 0, 1]), SimpleNamespace()
    ).sum().backward()
    moved = model.net.vectors.grad.norm(dim=1)
    assert (moved > 0).tolist() == [True, True, False, True, False]


def test_paraphrases_are_told_by_their_texts():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert Contrastive(Fixed(vectors)).confusable.int().tolist() == [
        [0, 0, 1],
        [0, 0, 1],
        [1, 1, 0],
    ]
    every = Contrastive(Fixed(vectors), paraphrase=1.0).confusable
    assert every.int().tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    with pytest.raises(UserError, match="net Linear has no texts"):
        Contrastive(nn.Linear(2, 2))


def test_any_other_prompt_may_be_the_reference_if_asked_for():
    def classifier(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tensor([[1.0, 3.0, 2.0]])

    classifier.confusable = torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 0]]).bool()
    x, sigma, c = torch.zeros(1, 2), torch.ones(1), torch.zeros(1, dtype=torch.long)
    given = (classifier, "denoised", x, sigma, c, x, "pairwise")
    assert confusion(*given)[0].item() == 2
    assert confusion(*given, any_other=True)[0].item() == 1


def test_the_encoder_reads_positions(made):
    """Pictures with their halves exchanged have other vectors, as mean pooling would not see."""
    net = restore(made.encoder).net
    assert isinstance(net, DualEncoder)
    x = torch.rand(2, 1, 28, 56) * 2 - 1
    f, swapped = net.features(x), net.features(x.roll(28, 3))
    torch.testing.assert_close(f.norm(dim=1), torch.ones(2))
    assert (f - swapped).norm(dim=1).min() > 1e-3
    cosines = restore(made.encoder).cosines(x)
    torch.testing.assert_close(net(x), net.log_scale.exp() * cosines)


# A judge of halves


def test_a_judge_of_parts_is_the_product_of_its_parts(made):
    data, one = Captions(root=str(made.root)), restore(made.judge)
    judge = SideBySide(path=str(made.judge))
    judge.take_data(data)
    x = torch.rand(3, 1, 28, 56) * 2 - 1
    left, right = (one(half, torch.zeros(3)).softmax(1) for half in x.split(28, 3))
    logits = judge(x, torch.zeros(3))
    for k in (0, 123, 399):
        a, b = data.parts[k].tolist()
        torch.testing.assert_close(logits[:, k].exp(), left[:, a] * right[:, b])
    c = torch.tensor([34, 134, 234])
    assert class_accuracy(logits, c) == class_accuracy(logits, c % 100)  # whatever the wording


def test_what_no_judge_of_parts_is_made_of(made):
    with pytest.raises(UserError, match="is no classifier of clean samples"):
        SideBySide(path=str(made.base))
    judge = SideBySide(path=str(made.judge))
    with pytest.raises(UserError, match="the data say nothing of parts"):
        judge.take_data(None)
    three = SimpleNamespace(shape=(1, 28, 56), parts=torch.zeros(5, 3, dtype=torch.long))
    with pytest.raises(UserError, match=r"3 of \(1, 28, 28\) make no picture of shape"):
        judge.take_data(three)
    eleven = SimpleNamespace(shape=(1, 28, 56), parts=torch.full((5, 2), 10))
    with pytest.raises(UserError, match="a part is 10, and the classifier knows 10"):
        judge.take_data(eleven)


def test_a_class_is_right_where_none_is_more_probable():
    logits = torch.tensor([[1.0, 2.0, 2.0], [3.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
    assert class_accuracy(logits, torch.tensor([1, 0, 2]))["class_accuracy"] == 2 / 3
    assert class_accuracy(logits, 2)["class_accuracy"] == 1 / 3
    assert class_accuracy(torch.full((2, 3), torch.nan), 0)["class_accuracy"] == 0


# Samples and their scores


def test_each_seed_draws_one_of_the_classes(made):
    c = load_tensors(made.samples / SAMPLES, "c")["c"]
    assert set(c.tolist()) == {7, 190}


@pytest.mark.parametrize(
    "label, message",
    [
        ([3, 400], "class_label=400 is outside 0 ... 399"),
        ([3, "ten"], "class_label=ten is no class"),
        ([3, 3], "class_label has class 3 twice"),
    ],
)
def test_classes_that_are_none(made, tmp_path, label, message):
    with pytest.raises(UserError, match=message):
        generate(
            models={"model": str(made.base)}, guidance={"name": "unguided"}, n=2,
            sampler={"name": "euler", "steps": 2}, class_label=label,
            run_dir=str(tmp_path / "run"),
        )  # fmt: skip


JUDGE = "lightning_cfg.evaluation.side_by_side.SideBySide"


def test_samples_are_judged_by_a_section(made, tmp_path):
    x, c = load_tensors(made.samples / SAMPLES, "x", "c").values()
    judge = SideBySide(path=str(made.judge))
    judge.take_data(Captions(root=str(made.root)))
    run = evaluate(
        samples={"a": str(made.samples)}, data=made.data, by_class=False,
        metrics=["class_accuracy"], classifier={"name": JUDGE, "path": str(made.judge)},
        fresh=1, run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    rows = {row["samples"]: row for row in json.loads((run / METRICS).read_text())}
    bytes_ = ((x + 1) * 127.5 + 0.5).floor().clamp(0, 255)
    expected = class_accuracy(judge(bytes_ / 127.5 - 1, torch.zeros(12)), c)
    assert rows["a"]["class_accuracy"] == pytest.approx(expected["class_accuracy"])
    assert rows["real"]["n"] == 320  # one of each prompt that has pictures
    right = [row for row in json.loads((run / RIGHT).read_text()) if row["samples"] == "a"]
    assert {row["class"]: row["n"] for row in right} == dict(
        zip(*[part.tolist() for part in c.unique(return_counts=True)], strict=True)
    )
    total = sum(row["right"] for row in right) / 12
    assert total == pytest.approx(expected["class_accuracy"])


def test_the_alignment_with_the_guiding_encoder_is_told(made, tmp_path, capsys):
    how = {"data": made.data, "by_class": False, "metrics": ["text_alignment"]}
    run = evaluate(
        samples={"a": str(made.samples)}, classifier=str(made.encoder), **how,
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert "a was guided by this classifier" in capsys.readouterr().out
    x, c = load_tensors(made.samples / SAMPLES, "x", "c").values()
    bytes_ = ((x + 1) * 127.5 + 0.5).floor().clamp(0, 255)
    own = restore(made.encoder).cosines(bytes_ / 127.5 - 1)[torch.arange(12), c].double()
    (row,) = json.loads((run / METRICS).read_text())
    assert row["text_alignment"] == pytest.approx(own.mean().item(), abs=1e-6)
    assert row["text_alignment_se"] == pytest.approx(own.std().item() / 12**0.5, rel=1e-4)
    with pytest.raises(UserError, match="needs cosine, which the config does not give: name a"):
        evaluate(
            samples={"a": str(made.samples)}, classifier={"name": JUDGE, "path": str(made.judge)},
            **how, run_dir=str(tmp_path / "other"),
        )  # fmt: skip
    assert "guided" not in capsys.readouterr().out


def test_what_an_error_of_a_column_is_called():
    assert kind_of("text_alignment_se") == "text_alignment"
    assert meaning("text_alignment_se").text == "standard error of text_alignment"
    assert text_alignment(torch.tensor([0.5])) == {"text_alignment": 0.5}


# The study


@pytest.fixture
def asked(made) -> dict:
    config = load(study, STUDY, [f"cases.{name}.root={made.root}" for name in ("shown", "unseen")])
    for section in config["methods"].values():
        section["generation"] = config["generation"]
    return config


def test_cases_share_what_is_trained_and_seeds_what_is_trained_once(asked):
    graphs = _graphs(asked, _check(asked), _data_sets(asked))
    fits = [name for graph in graphs for name in graph.stages if " fit " in name]
    assert sorted(fits) == [
        *("seed 0 shown fit base", "seed 0 shown fit encoder", "seed 0 shown fit judge"),
        *("seed 0 shown fit weak", "seed 1 shown fit base", "seed 1 shown fit weak"),
        *("seed 2 shown fit base", "seed 2 shown fit weak"),
    ]
    every = {name: stage for graph in graphs for name, stage in graph.stages.items()}
    scale = asked["methods"]["gfcg"]["scales"][0]
    made = every[f"seed 2 unseen generate gfcg {scale:g} fresh"].settings
    assert made["models"] == {
        "model": Output("seed 2 shown fit base"),
        "classifier": Output("seed 0 shown fit encoder"),
    }
    assert made["class_label"] == Captions(pairs="unseen").drawn.tolist()
    assert every["seed 0 shown fit judge"].settings["data"]["name"] == "MNIST"
    assert every["seed 0 shown fit base"].settings["data"]["pairs"] == "shown"
    assert every["seed 1 unseen evaluate real"].settings["fresh"] == 1000 // 80
    scored = every[f"seed 1 unseen evaluate gfcg {scale:g}"].settings
    assert scored["classifier"]["path"] == Output("seed 0 shown fit judge")


def test_once_names_a_fit(asked):
    with pytest.raises(UserError, match="once: encodr is none of fits"):
        _check({**asked, "once": ["encodr"]})


# Errors over classes and seeds


def test_errors_over_classes_and_seeds():
    """Of groups alone the bootstrap's variance is that of their means; of both, both are added."""
    g = torch.Generator().manual_seed(0)
    share = torch.rand(1, 40, generator=g, dtype=torch.float64)
    n = torch.full((1, 40), 50.0, dtype=torch.float64)
    found = resampled(n, n * share, 20_000)
    assert found[0] == pytest.approx(share.mean().item())
    expected = (share.var(correction=0) / 40) ** 0.5
    assert found[1:].std().item() == pytest.approx(expected.item(), rel=0.03)
    of_seeds = torch.tensor([[-0.2], [0.0], [0.2]], dtype=torch.float64)
    n = n.expand(3, 40)
    both = resampled(n, n * (share / 2 + 0.25 + of_seeds), 20_000)
    variance = (share / 2).var(correction=0) / 40 + of_seeds.var(correction=0) / 3
    assert both[1:].var().item() == pytest.approx(variance.item(), rel=0.05)
    again = resampled(n, n * (share / 2 + 0.35 + of_seeds), 20_000)
    assert (again - both).std().item() < 1e-6  # the same draws: what they share cancels


def read(share: float, seeds: int = 2) -> list[list[dict]]:
    """Of every unseen prompt 10 samples by each seed, of which so many are right."""
    prompts = Captions(pairs="unseen").drawn.tolist()
    rows = [{"class": k, "n": 10, "right": round(10 * share)} for k in prompts]
    return [rows for _ in range(seeds)]


def test_the_report_tells_shares_by_what_prompts_say():
    row = {"scale": 1.0, "class": "all", "stage": "before", "flow": "", "nfe": 38.0, "n": 800}
    rows = [
        {"seed": seed, "method": name, **row, "evaluations": "model 38", "class_accuracy": 0.5}
        for name in ("plain", "guided")
        for seed in (0, 1)
    ]
    right = {("plain", 1.0, "before", ""): read(0.5), ("guided", 1.0, "before", ""): read(0.8)}
    case = Case("unseen", Captions(pairs="unseen"), rows, seeds=[0, 1], right=Cells(right))
    text, table = told(case)
    assert "what the classes say, 20 of it" in text
    assert "the seeds with all that they trained" in text
    plain, guided = (line.split("|")[1:-1] for line in table.splitlines()[2:])
    assert [cell.strip() for cell in plain] == [
        "plain",
        "1",
        "before",
        "model 38",
        "50.0 ± 0.0 %",
        "",
    ]
    assert [cell.strip() for cell in guided][4:] == ["80.0 ± 0.0 %", "30.0 ± 0.0 %"]
    more = {("plain", 3.0, "before", ""): read(0.6), **right}  # the first of it leads
    rows += [{**row, "scale": 3.0, "method": "plain", "seed": 0, "evaluations": "model 38"}]
    order = ("plain", 1.0), ("plain", 3.0), ("guided", 1.0)
    right = {(*cell, "before", ""): more[*cell, "before", ""] for cell in order}
    _, table = told(
        Case("unseen", Captions(pairs="unseen"), rows, seeds=[0, 1], right=Cells(right))
    )
    head, _, *lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]
    assert head[5:] == ["against plain 1", "against plain 3"]
    assert [line[5:] for line in lines] == [
        ["", "-10.0 ± 0.0 %"],
        ["10.0 ± 0.0 %", ""],
        ["30.0 ± 0.0 %", "20.0 ± 0.0 %"],
    ]
    few = Case("", SimpleNamespace(num_classes=10, parts=None), rows, right=Cells(right))
    for cell, of_seeds in right.items():
        few.right[Cell(*cell)] = [[row for row in of_seeds[0] if row["class"] < 10]]
    assert told(few) == []  # of ten classes none is said to be drawn


def test_a_sheet_shows_prompts_that_there_are_pictures_of():
    unseen = Captions(pairs="unseen")
    shown = classes_shown(unseen)
    assert len(shown) == 10
    assert set(shown) <= set(unseen.drawn.tolist())
    assert len({tuple(unseen.parts[k].tolist()) for k in shown}) > 5
    assert classes_shown(SimpleNamespace(drawn=None, num_classes=3)) == [0, 1, 2]
