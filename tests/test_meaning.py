"""What columns mean: every metric declares it, one of anyone's own may, and nothing is guessed."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_cfg import metrics
from lightning_cfg.data import Mixture
from lightning_cfg.errors import UserError
from lightning_cfg.metrics.frechet import Moments
from lightning_cfg.metrics.meaning import (
    better,
    check_columns,
    kind_of,
    meaning,
    percent,
    show,
)
from lightning_cfg.metrics.needs import needs
from lightning_cfg.reports.rows import best, bold
from lightning_cfg.reports.sweep import against
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit

DOCS = Path(__file__).parents[1] / "docs/metrics.md"


@pytest.fixture(scope="module")
def given() -> dict:
    """All that a metric can ask for."""
    generator = torch.Generator().manual_seed(0)
    x, y, bank = (torch.randn(200, 1, generator=generator) for _ in range(3))
    features = {name: torch.randn(1200, 3, generator=generator) for name in ("x", "y", "bank")}
    truth = Mixture(means=[[-1.0], [1.0]], stds=[0.5, 0.5], labels=[0, 1]).truth
    return {
        **{"x": x, "y": y, "bank": bank, "c": 0, "truth": truth, "quantile": truth.quantile},
        "logits": torch.randn(200, 2, generator=generator),
        "cosine": torch.rand(200, generator=generator),
        "head_logits": torch.randn(200, 2, generator=generator),
        **{f"features_{name}": held for name, held in features.items()},
        "features_held_out": features["y"],
        **{f"moments_{name}": Moments().add(features[name]) for name in ("x", "y")},
    }


@pytest.mark.parametrize("name", metrics.__all__)
def test_every_column_of_every_metric_says_what_it_is(name, given):
    metric = getattr(metrics, name)
    columns = metric(**{need: given[need] for need in needs(metric)})
    check_columns(metric, columns)
    for column in columns:
        means = meaning(column)
        assert means.text != "a metric of one's own"
        assert (means.better is None) == column.endswith(("_std", "_se"))


@pytest.mark.parametrize(
    "column, way, text",
    [
        ("fid", "lower", "Fréchet distance in Inception's features"),
        ("fid_2k", "lower", "Inception"),
        ("fid_2k_vs_held_out", "lower", "Inception"),
        ("fid_infinity", "lower", "extrapolated to endless samples"),
        ("fd_dinov2_pil", "lower", "DINOv2"),
        ("fd_judge", "lower", "in this feature space"),
        ("kid_std", None, "deviation of kid"),
        ("recall", "higher", "improved recall"),
        ("recall_k5_dinov2", "higher", "improved recall"),
        ("frechet_vs_bank", "lower", "mean and covariance"),
        ("density_k5_inception", "real", "about 1"),
        ("outliers_of_mine", None, "a metric of one's own"),  # no space's label follows that one
        ("brilliance", None, "a metric of one's own"),
    ],
)
def test_columns_of_tables(column, way, text):
    assert meaning(column).better == way
    assert text in meaning(column).text


def test_values_are_written_as_the_metric_says():
    values = {"outliers": 0.0123, "recall_k3_pixels": 0.5, "frechet": 0.0123, "n": 1234}
    shown = {name: show(name, value) for name, value in values.items()}
    assert list(shown.values()) == ["1.23 %", "50 %", "0.0123", "1,234"]
    assert (show("frechet", None), show("evaluations", "model 3")) == ("", "model 3")


def test_the_best_goes_by_what_is_declared():
    @better("higher", "made up", column="gain")
    def gain(x: Tensor) -> dict[str, float]:
        return {"gain": 0.0}

    values = [1.0, None, 3.0, 2.0]
    assert best("gain", values) == 3.0
    assert best("frechet", values) == 1.0
    assert best("nll_mean", values, real=2.2) == 2.0
    assert best("nll_mean", values) is None  # what real data have is not known
    assert best("brilliance", values) is None
    top = best("brilliance", values)
    assert [bold("brilliance", value, top) for value in values] == ["1", "", "3", "2"]
    assert bold("gain", 3.0, best("gain", values)) == "**3**"


def test_a_sweep_says_no_way_of_what_is_not_declared():
    rows = [{"scale": s, "samples": "a", "n": 9, "brilliance": s, "fid": s} for s in (1.0, 2.0)]
    figure = against(rows, "scale", ["scale"], {"scale": "scale"})
    assert [panel.get_title() for panel in figure.axes] == ["brilliance", "fid (lower is better)"]


def test_what_contradicts_is_refused():
    def density(x: Tensor) -> dict[str, float]:
        return {"density": 0.0}

    for way in ("higher", "real"):
        with pytest.raises(UserError, match="column density of density_coverage is better real"):
            better(way, "as dense as can be")(density)
    with pytest.raises(UserError, match="lower, higher or real"):
        better("bigger", "of no known way")


def test_a_column_that_would_pass_for_another_metrics_is_refused():
    def roundness(x: Tensor) -> dict[str, float]:
        return {"is_round": 0.5}

    assert kind_of("is_round") == "is"  # the Inception score of a space called round
    with pytest.raises(UserError, match="roundness: its column is_round would be read as is of"):
        check_columns(roundness, {"is_round": 0.5})
    better("higher", "share of round ones", column="is_round")(roundness)
    check_columns(roundness, {"is_round": 0.5})
    assert meaning("is_round_vs_bank").text == "share of round ones"


def coverage(x: Tensor) -> dict[str, float]:
    """One's own, which says nothing of itself, and has the column of another one."""
    return {"coverage": float((x > 0).double().mean())}


def test_a_column_of_the_same_name_is_not_read_as_the_packages(call, training, mixture):
    """Before anything is made or trained: which way is better would be the other one's."""
    words = "metric coverage: its column coverage would be read as coverage of density_coverage"
    with pytest.raises(UserError, match=words):
        check_columns(coverage, {"coverage": 0.5})
    mine = {"metrics": ["test_meaning.coverage"]}
    config = training(evaluation={"every": 5, "n": 8, **mine}, keep=1)
    refused = call(fit, config, "run_dir=run", "keep_by=coverage/scale_1")
    assert (refused.status, words in refused.err) == (2, True), refused.err
    made = {"models": {"model": "exact"}, "guidance": "unguided", "n": 10**8, "data": mixture}
    made |= {"sampler": "heun"}  # hours, were they made
    refused = call(evaluate, {"generate": {"a": made}, "data": mixture, **mine}, "run_dir=run")
    assert (refused.status, words in refused.err) == (2, True), refused.err
    assert not Path("run").exists()


def test_the_last_word_counts_of_a_metric_of_ones_own():
    def shine(x: Tensor) -> dict[str, float]:
        return {"shine": 0.0}

    better("lower", "as it was")(shine)
    better("higher", "as it is")(shine)  # the module was changed and read again
    assert meaning("shine")[:2] == ("higher", "as it is")
    shine.__qualname__ = "another"
    with pytest.raises(UserError, match=r"column shine of test_meaning.*is better higher"):
        better("lower", "somebody else's")(shine)
    with pytest.raises(UserError, match="its column shine would be read as shine of test_meaning"):
        check_columns(shine, ["shine"])


def test_the_example_of_the_docs():
    (code,) = re.findall(r"```python\n(# brightness.py.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    found = names["brightness"](x=torch.tensor([[0.0], [0.5]]), y=torch.tensor([[-1.0], [0.2]]))
    assert found == {"brightness": 0.25, "bright": 0.5}
    assert [meaning(name).better for name in found] == ["real", "higher"]
    assert meaning("bright").format is percent
