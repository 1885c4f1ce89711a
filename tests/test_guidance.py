import pytest
import torch
from torch import nn

from lightning_cfg.diffusion.mixture import fractal
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import autoguidance, classifier_free, classifier_gradient, unguided
from lightning_cfg.interfaces import NULL
from lightning_cfg.sampling.guided import guide
from lightning_cfg.sampling.prepared import Counted, ExactClassifier

F64 = torch.float64
SCALES = [0.0, 0.5, 1.0, 2.0, 5.0]


@pytest.fixture(scope="module")
def truth():
    return fractal()


@pytest.fixture(scope="module")
def noisy(truth):
    """Points of the fractal at noise levels from 0.005 to 157, and their classes."""
    g = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-2.3010299957, 2.1958996524, 60, dtype=F64)
    c = torch.arange(60) % 2
    y = torch.cat([truth.sample(1, int(k), g) for k in c])
    return y + sigma[:, None] * torch.randn(60, 2, generator=g, dtype=F64), sigma, c


@pytest.mark.parametrize("base", ["unconditional", "conditional"])
@pytest.mark.parametrize("scale", SCALES)
def test_with_exact_parts_classifier_guidance_is_classifier_free(truth, noisy, scale, base):
    free = classifier_free(truth, scale=scale)
    gradient = classifier_gradient(truth, ExactClassifier(truth), scale=scale, base=base)
    torch.testing.assert_close(gradient(*noisy), free(*noisy), rtol=0, atol=1e-9)
    if scale not in (0, 1):  # and it is no small thing that agrees
        assert (free(*noisy) - truth(*noisy)).abs().max() > 0.1


def test_with_exact_parts_scale_1_is_the_conditional_model(truth, noisy):
    guided = classifier_gradient(truth, ExactClassifier(truth), scale=1)
    torch.testing.assert_close(guided(*noisy), truth(*noisy), rtol=0, atol=1e-9)


class Affine(nn.Module):
    """A denoiser a x + b c + sigma whose answers are worked out by hand; NULL = -1 counts as c."""

    def __init__(self, a=0.5, b=3.0, label_dropout=0.1):
        super().__init__()
        self.a, self.b, self.label_dropout = a, b, label_dropout

    def forward(self, x, sigma, c):
        return self.a * x + self.b * c[:, None] + sigma[:, None]


class LinearLogits(nn.Module):
    """log p(c | x) with logits (0, x_0): its gradient is sigmoid(-x_0) for class 1."""

    def forward(self, x, sigma):
        return torch.stack([torch.zeros_like(x[:, 0]), x[:, 0]], 1)


X = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=F64)
SIGMA = torch.tensor([0.5, 2.0], dtype=F64)
C = torch.tensor([1, 1])
ARGUMENTS = X, SIGMA, C


def test_unguided_is_the_model():
    model = Counted(Affine())
    assert torch.equal(unguided(model)(*ARGUMENTS), Affine()(*ARGUMENTS))
    assert model.evaluations == 2


@pytest.mark.parametrize("scale", [0.5, 2.0, -1.0])
def test_classifier_free_by_hand(scale):
    model = Counted(Affine())
    D_c, D_u = 0.5 * X + 3 + SIGMA[:, None], 0.5 * X - 3 + SIGMA[:, None]
    guided = classifier_free(model, scale=scale)(*ARGUMENTS)
    torch.testing.assert_close(guided, D_u + scale * (D_c - D_u))
    assert model.evaluations == 4


@pytest.mark.parametrize("base, b, weight", [("unconditional", -3, 2.5), ("conditional", 3, 1.5)])
def test_classifier_gradient_by_hand(base, b, weight):
    model, classifier = Counted(Affine()), Counted(LinearLogits())
    guided = classifier_gradient(model, classifier, scale=2.5, base=base)(*ARGUMENTS)
    gradient = torch.tensor([[0.5, 0.0], [0.11920292202211755, 0.0]], dtype=F64)
    D = 0.5 * X + b + SIGMA[:, None]
    torch.testing.assert_close(guided, D + weight * SIGMA[:, None] ** 2 * gradient)
    assert (model.evaluations, classifier.evaluations) == (2, 2)


def test_the_gradient_is_of_each_samples_own_class():
    classifier, x = LinearLogits(), torch.zeros(2, 2, dtype=F64)
    guided = classifier_gradient(Affine(0, 0), classifier, scale=1)
    D = guided(x, torch.ones(2, dtype=F64), torch.tensor([0, 1]))
    torch.testing.assert_close(D[:, 0], torch.tensor([1 - 0.5, 1 + 0.5], dtype=F64))


@pytest.mark.parametrize("scale", [0.5, 2.0, 3.5])
def test_autoguidance_by_hand(scale):
    model, weak = Counted(Affine(b=3.0)), Counted(Affine(a=0.25, b=1.0))
    D, D_weak = 0.5 * X + 3 + SIGMA[:, None], 0.25 * X + 1 + SIGMA[:, None]
    guided = autoguidance(model, weak, scale=scale)(*ARGUMENTS)
    torch.testing.assert_close(guided, D_weak + scale * (D - D_weak))
    assert (model.evaluations, weak.evaluations) == (2, 2)


def test_a_weak_model_that_is_the_model_changes_nothing():
    model = Affine()
    for scale in SCALES:
        guided = autoguidance(model, model, scale=scale)
        assert torch.equal(guided(*ARGUMENTS), model(*ARGUMENTS))


def test_scale_1_is_the_conditional_model_without_another_evaluation():
    expected = Affine()(*ARGUMENTS)
    model, other = Counted(Affine()), Counted(Affine(a=9.0))
    classifier = Counted(LinearLogits())
    for guided in (
        classifier_free(model, scale=1),
        autoguidance(model, other, scale=1),
        classifier_gradient(model, classifier, scale=1, base="conditional"),
    ):
        model.evaluations = 0
        assert torch.equal(guided(*ARGUMENTS), expected)
        assert model.evaluations == 2
    assert other.evaluations == classifier.evaluations == 0


def test_scale_0_is_the_other_end_without_another_evaluation():
    null = torch.full_like(C, NULL)
    model, classifier = Counted(Affine()), Counted(LinearLogits())
    for guided in (
        classifier_free(model, scale=0),
        classifier_gradient(model, classifier, scale=0),
    ):
        model.evaluations = 0
        assert torch.equal(guided(*ARGUMENTS), Affine()(X, SIGMA, null))
        assert model.evaluations == 2
    assert classifier.evaluations == 0

    model, weak = Counted(Affine()), Counted(Affine(a=9.0))
    assert torch.equal(autoguidance(model, weak, scale=0)(*ARGUMENTS), Affine(a=9.0)(*ARGUMENTS))
    assert (model.evaluations, weak.evaluations) == (0, 2)


def test_a_model_without_label_dropout_is_refused_by_name():
    model = Counted(Affine(label_dropout=0.0))
    for scale in (0.0, 0.5, 2.0):
        with pytest.raises(UserError, match=r"classifier_free.*label_dropout"):
            classifier_free(model, scale=scale)
        with pytest.raises(UserError, match=r"classifier_gradient.*label_dropout"):
            classifier_gradient(model, LinearLogits(), scale=scale)
    classifier_free(model, scale=1.0)  # asks for no unconditional part
    classifier_gradient(model, LinearLogits(), scale=2.0, base="conditional")
    autoguidance(model, model, scale=2.0)


def test_guidance_works_without_autograd_and_leaves_no_graph(truth, noisy):
    guided = classifier_gradient(truth, ExactClassifier(truth), scale=2)
    expected = guided(*noisy).detach()
    with torch.no_grad():
        D = guided(*noisy)
        assert not torch.is_grad_enabled()
    assert torch.equal(D, expected)
    assert not D.requires_grad
    assert not noisy[0].requires_grad


def test_the_classifiers_weights_get_no_gradient():
    classifier = nn.Linear(2, 2).double()
    guided = classifier_gradient(Affine(), lambda x, sigma: classifier(x), scale=2)
    with torch.no_grad():
        guided(*ARGUMENTS)
    assert all(p.grad is None for p in classifier.parameters())


def test_a_config_section_gives_each_role_its_network():
    networks = {
        "model": Counted(Affine()),
        "weak": Counted(Affine(a=0.25, b=1.0)),
        "classifier": Counted(LinearLogits()),
    }
    for section, expected in (
        ({"name": "unguided"}, unguided(Affine())),
        ({"name": "classifier_free", "scale": 3.0}, classifier_free(Affine(), scale=3)),
        ({"name": "autoguidance", "scale": 3.0}, autoguidance(Affine(), Affine(0.25, 1), scale=3)),
        (
            {"name": "classifier_gradient", "scale": 3.0, "base": "conditional"},
            classifier_gradient(Affine(), LinearLogits(), scale=3, base="conditional"),
        ),
    ):
        assert torch.equal(guide(section, networks)(*ARGUMENTS), expected(*ARGUMENTS))
