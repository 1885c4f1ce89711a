"""Features and moments on a GPU are the CPU's to float32's rounding, never TF32's."""

import pytest
import torch
from closeness import FLOAT32, assert_within
from test_features import inception_weights, photographs  # noqa: F401  a fixture of theirs

from lightning_cfg.evaluation import features
from lightning_cfg.evaluation.gather import ALL, gather
from lightning_cfg.evaluation.sample_sets import held
from lightning_cfg.metrics.frechet import Moments, frechet_distance
from lightning_cfg.runs.pngs import signed
from lightning_cfg.runs.precision import matmul
from lightning_cfg.verbs.fit import fit


def test_inception_without_tf32(inception_weights, device):  # noqa: F811
    x = signed(photographs(6))
    here = features.inception(weights=str(inception_weights))
    expected, logits = here(x), here.head(here(x))
    there = features.inception(weights=str(inception_weights)).to(device)
    with matmul("high"):
        f = there(x)
        assert f.device.type == "cpu"
        assert_within(FLOAT32, f, expected)
        assert_within(FLOAT32, there(x.to(device)), expected)
    assert_within(FLOAT32, there.head(f.to(device)), logits)


@pytest.mark.cuda
def test_tf32_would_be_seen(inception_weights, device):  # noqa: F811
    """Or the test before says nothing: the network itself, with TF32, is further off."""
    x = signed(photographs(6))
    here = features.inception(weights=str(inception_weights))
    there = features.inception(weights=str(inception_weights)).to(device)
    with matmul("high"), torch.no_grad():
        f = there._extract(x.to(device)).float().cpu()
    distance = float((f - here(x)).norm() / here(x).norm())
    print(f"with TF32 apart by {distance:.1e}")
    assert distance > FLOAT32


def test_all_that_metrics_need_is_gathered_on_the_cpu(training, accelerator, device, tmp_path):
    """A classifier of one's own as feature space and judge: features, logits, moments."""
    run = fit(
        **training(
            data={"name": "helpers.toys.Halves"},
            net={"name": "ConvNet", "channels": 8},
            model={"name": "NoisyClassifier", "clean": True},
            learner={"name": "Classification", "lr": 1e-2},
            trainer={"accelerator": accelerator},
        ),
        run_dir=str(tmp_path / "run"),
    )
    g = torch.Generator().manual_seed(0)
    some = held(torch.rand(50, 1, 8, 8, generator=g) * 2 - 1, torch.arange(50) % 2, {})
    wanted, found = {"x", "features", "moments", "logits", "head_logits"}, []
    for place in ("cpu", device):
        space = features.classifier(path=str(run)).to(place)
        judge = features.checkpoints.restore(run).to(place)
        how = {"device": place, "batch_size": 16, "groups": [ALL, 0, 1]}
        with matmul("high"):
            found.append(gather(some, wanted, {"own": space}, classifier=judge, **how))
    one, other = found
    for name in ("features", "head_logits"):
        assert getattr(other, name)["own"].device.type == "cpu"
        assert_within(FLOAT32, getattr(other, name)["own"], getattr(one, name)["own"])
    assert other.logits.device.type == "cpu"
    for group in (ALL, 0, 1):
        mine, theirs = (gathered.moments["own"][group] for gathered in found)
        assert_within(FLOAT32, theirs.mean, mine.mean)
        assert_within(2 * FLOAT32, theirs.covariance, mine.covariance)


def test_a_frechet_distance_on_the_device(device):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(500, 20, generator=g) + i for i in (0, 0.5))
    expected = frechet_distance(Moments().add(x), Moments().add(y))
    found = frechet_distance(Moments().add(x.to(device)), Moments().add(y.to(device)))
    assert found == pytest.approx(expected, rel=1e-9)
