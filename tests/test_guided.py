"""What a guided denoiser asks of a sampler, what is known of a network, and their first answers."""

import re
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lightning_cfg.diffusion import noise
from lightning_cfg.diffusion.mixture import GaussianMixture
from lightning_cfg.diffusion.models import EDM
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import cads, classifier_free, discriminator_gradient, interval, rescale
from lightning_cfg.guidance.composed import Changed, pass_on
from lightning_cfg.interfaces import Guided, Known, as_guided, expand_like, over
from lightning_cfg.nets import MLP
from lightning_cfg.sampling import prepared
from lightning_cfg.sampling.guided import guide
from lightning_cfg.sampling.prepared import Counted, prepare
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded

F64 = torch.float64
EULER = {"name": "euler", "steps": 4, "sigma_max": 10.0}
TWO = GaussianMixture(
    torch.ones(2, dtype=F64),
    torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=F64),
    0.1 * torch.eye(2, dtype=F64).expand(2, 2, 2),
    torch.tensor([0, 1]),
)


def run(denoise, section=EULER, n=5):
    noise, c, draw = seeded(list(range(n)), (2,), 2)
    *_, (_, x) = sample(section, denoise, noise, c, draw)
    return x


# --- a method of one's own, as docs/guidance.md had it before there was Guided ---

OWN = """
from lightning_cfg.guidance.composed import Of, pass_on
from lightning_cfg.interfaces import over

heard = []


def listening(model, *, scale: float = 2.0):
    def guided(x, sigma, c):
        return scale * model(x, sigma, c)

    def begin_step(i, sigma):
        heard.append(i)

    guided.begin_step = begin_step
    guided.keep_noise = lambda share: heard.append(share)
    guided.draw_from = lambda draw: heard.append(draw().shape)
    return guided


def best_of(model, *, of: Of, candidates: int = 3):
    within = of(model)

    def guided(x, sigma, c):
        return within(x, sigma, c)

    guided.candidates = candidates
    guided.log_p = lambda x, c: x[:, 0]
    return pass_on(guided, within)


def narrow(model, *, scale: float = 2.0):
    return lambda x, sigma, c: model(x, sigma, c)[:, :1]


def forgotten(model, *, scale: float = 2.0):
    def guided(x, sigma, c):
        return model(x, sigma, c)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_guidance.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_guidance

    own_guidance.heard.clear()
    return own_guidance


def test_attributes_of_a_function_ask_as_they_did(own):
    found = run(guide({"name": "own_guidance.listening", "scale": 1.0}, {"model": TWO}))
    assert own.heard[0] == (5, 2)
    assert own.heard[2::2] == [0, 1, 2, 3]
    assert own.heard[1::2][-1] == 0  # the last step keeps no noise
    assert torch.equal(found, run(TWO))


def test_pass_on_hands_on_what_the_inner_one_asks(own):
    """Of three candidates the one farthest to the right, and the inner one hears the steps."""
    inner = {"name": "own_guidance.listening", "scale": 1.0}
    found = run(guide({"name": "own_guidance.best_of", "of": inner}, {"model": TWO}))
    assert len(own.heard) == 3 * (1 + 2 * 4)  # the noise, and two things of every step
    _, c, draw = seeded(list(range(5)), (2,), 2)
    each = [run(TWO)]
    for j in (1, 2):
        *_, (_, x) = sample(EULER, TWO, draw.other(f"candidate {j}")(), c, draw)
        each.append(x)
    best = torch.stack(each)[torch.stack(each)[:, :, 0].argmax(0), torch.arange(5)]
    torch.testing.assert_close(found, best)
    assert not torch.equal(found, each[0])


def test_what_both_ask_is_the_outers_business():
    asked = []
    inner = Guided(TWO, begin_step=lambda i, s: asked.append("inner"), keep_noise=asked.append)
    outer = Guided(TWO, begin_step=lambda i, s: asked.append("outer"))
    both = pass_on(outer, inner)
    both.begin_step(0, 1.0)
    both.keep_noise(0.5)
    assert asked == ["outer", 0.5]
    assert (both.candidates, both.log_p, both.draw_from) == (1, None, None)


# --- Guided ---


def test_a_plain_function_asks_nothing():
    def plain(x, sigma, c):
        return x

    asked = as_guided(plain)
    assert asked == Guided(plain)
    assert as_guided(asked) is asked
    assert torch.equal(asked(*[torch.ones(2, 2)] * 3), torch.ones(2, 2))


def test_a_wish_that_is_misspelt_is_an_error():
    with pytest.raises(TypeError, match="begin_stp"):
        Guided(TWO, begin_stp=print)
    with pytest.raises(AttributeError):
        Guided(TWO).begin_stp = print
    with pytest.raises(UserError, match="candidates=3 need log_p"):
        Guided(TWO, candidates=3)


def test_a_method_that_returns_no_denoiser_is_named(own):
    with pytest.raises(UserError, match=r"own_guidance\.forgotten returns NoneType, not a denoi"):
        guide({"name": "own_guidance.forgotten"}, {"model": TWO})


def test_the_old_name_of_expand_like_still_works():
    assert over is expand_like
    assert over(torch.arange(3), torch.zeros(3, 2, 2)).shape == (3, 1, 1)


# --- what is known of a network ---


class Labelled(nn.Module):
    shape, num_classes, label_dropout, sigma_min, sigma_max = (2,), 7, 0.0, 0.1, 9.0

    def class_vectors(self, c):
        return c[:, None].float()

    def forward(self, x, sigma, c):
        return x / 2


def test_what_stands_around_a_network_knows_what_the_network_says():
    net = Labelled()
    for known in (Known(net), Counted(net), Changed(net, net), Changed(Counted(net), net)):
        assert (known.shape, known.num_classes, known.label_dropout) == ((2,), 7, 0.0)
        assert (known.sigma_min, known.sigma_max, known.clean) == (0.1, 9.0, False)
        assert known.class_vectors(torch.tensor([3])).item() == 3.0
        with pytest.raises(AttributeError):
            known.num_clases  # noqa: B018
    nothing = Known(lambda x, sigma, c: x)
    assert (nothing.num_classes, nothing.label_dropout, nothing.class_vectors) == (None, 1.0, None)


@pytest.mark.parametrize(
    "between",
    [
        partial(discriminator_gradient, discriminator=lambda x, s: x, scale=2.0),
        partial(rescale, phi=0.5),
        lambda model, of: of(Changed(model, model)),
    ],
)
def test_cads_knows_the_samples_through_another_changed_model(between):
    """A batch in which some passes are skipped equals its samples one by one."""
    torch.manual_seed(0)
    net = EDM(MLP((2,), 2, width=16, blocks=1))
    nn.init.normal_(net.net.leave.weight, std=0.1)
    nn.init.normal_(net.net.class_embedding.weight, std=2.0)
    net = net.eval().requires_grad_(False)

    def guided(seeds, scales):
        _, c, draw = seeded(seeds, (2,), 2)
        cfg = partial(classifier_free, scale=torch.tensor(scales))
        one = cads(net, of=partial(between, of=cfg), tau_1=0.0, tau_2=0.2)
        one.draw_from(draw)
        one.begin_step(0, 50.0)
        sigma = torch.full((len(seeds),), 50.0, dtype=F64)
        return one(torch.ones(len(seeds), 2, dtype=F64), sigma, c)

    scales = [0.0, 2.0, 0.0, 3.0]
    whole = guided([1, 2, 3, 4], scales)
    alone = [guided([seed], [scale]) for seed, scale in zip([1, 2, 3, 4], scales, strict=True)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=0, atol=1e-5)


# --- first answers ---

X, SIGMA, C = torch.randn(4, 2, dtype=F64), torch.ones(4, dtype=F64), torch.zeros(4).long()
WRONG = [
    (lambda x, *_: x[:, :1], r"\(4, 1\) for samples of \(4, 2\), not \(4, 2\)"),
    (lambda x, *_: x[:1], r"\(1, 2\) for samples of \(4, 2\), not \(4, 2\)"),
    (lambda x, *_: x[..., None], r"\(4, 2, 1\) for samples of \(4, 2\), not \(4, 2\)"),
    (lambda x, *_: x + 0j, r"torch\.complex128 for samples, not real numbers"),
    (lambda x, *_: x.long(), r"torch\.int64 for samples, not real numbers"),
    (lambda x, *_: (x, x), r"tuple for samples, not a tensor"),
]


@pytest.mark.parametrize("answer, words", WRONG)
def test_a_network_with_a_wrong_answer_is_named_at_its_first_evaluation(answer, words):
    with pytest.raises(UserError, match=rf"models\.weak gives {words}"):
        Counted(answer, "models.weak")(X, SIGMA, C)


@pytest.mark.parametrize("answer, words", WRONG)
def test_a_method_with_a_wrong_answer_is_named_at_its_first_evaluation(answer, words, own):
    own.wrong = lambda model: lambda x, sigma, c: answer(x)
    inside = {"name": "own_guidance.wrong"}
    section = {"name": "interval", "of": inside, "sigma_low": 0.1, "sigma_high": 20.0}
    for guidance in (inside, section):
        with pytest.raises(UserError, match=rf"guidance own_guidance\.wrong gives {words}"):
            run(guide(guidance, {"model": TWO}), n=4)


def test_without_the_check_the_wrong_shape_would_be_broadcast(own):
    """Which is why there is one."""
    narrow = own.narrow(TWO)
    assert run(narrow).shape == (5, 2)
    with pytest.raises(UserError, match=r"own_guidance\.narrow gives \(5, 1\)"):
        run(guide({"name": "own_guidance.narrow"}, {"model": TWO}))


def test_a_classifier_answers_one_number_per_class():
    def classifier(x, sigma):
        return torch.zeros(len(x), 3)

    classifier.num_classes = 3
    assert Counted(classifier, "models.classifier", classifies=True)(X, SIGMA).shape == (4, 3)
    classifier.num_classes = 4
    with pytest.raises(UserError, match=r"classifier gives \(4, 3\) for .*, not \(4, 4\)"):
        Counted(classifier, "models.classifier", classifies=True)(X, SIGMA)


def test_only_the_first_answer_is_looked_at(monkeypatch):
    looked = []
    monkeypatch.setattr(prepared, "check_answer", lambda *of: looked.append(of))
    net = Counted(TWO, "models.model")
    for _ in range(3):
        net(X, SIGMA, C)
    assert len(looked) == 1
    assert net.evaluations == 12


def test_networks_are_looked_at_by_their_roles(monkeypatch):
    class Narrow(nn.Module):
        shape, num_classes, refines = (2,), 2, False

        def __init__(self, places):
            super().__init__()
            self.places = places

        def forward(self, x, *_):
            return x[:, : self.places]

    nets = {"models.model": 2, "models.weak": 1, "models.classifier": 1}
    monkeypatch.setattr(prepared, "network", lambda role, *_, **__: Narrow(nets[role]))

    def made(name, *roles):
        models = {role: role for role in ("model", *roles)}
        ready = prepare(models=models, guidance={"name": name}, sampler=EULER, device="cpu")
        _, steps = ready.start(torch.arange(3))
        return list(steps)

    assert len(made("unguided")) == 5
    with pytest.raises(UserError, match=r"models\.weak gives \(3, 1\) for samples of \(3, 2\)"):
        made("autoguidance", "weak")
    with pytest.raises(UserError, match=r"models\.classifier gives \(3, 1\) .*, not \(3, 2\)"):
        made("gfcg", "classifier")


def test_interval_tells_the_inner_one_each_step():
    told = []
    inner = Guided(TWO, begin_step=lambda i, sigma: told.append((i, sigma)))
    outer = interval(TWO, of=lambda model: inner, sigma_low=0.1, sigma_high=5.0)
    outer.begin_step(3, 0.5)
    assert told == [(3, 0.5)]
    assert replace(outer, begin_step=None).begin_step is None


# --- the guide's examples ---

TEXT = (Path(__file__).parent.parent / "docs" / "guidance.md").read_text()


def test_the_guides_method_with_a_wish_works(tmp_path, monkeypatch):
    code = TEXT.split("```python\n# sparse.py\n")[1].split("```")[0]
    (tmp_path / "sparse.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    nets = {"model": Counted(TWO), "weak": Counted(lambda x, sigma, c: x / 2)}
    run(guide({"name": "sparse.sparse", "scale": 3.0, "every": 3}, nets))
    assert (nets["model"].evaluations, nets["weak"].evaluations) == (5 * 4, 5 * 2)  # steps 0 and 3
    with pytest.raises(UserError, match="sparse must know the sampler's steps, and dopri5"):
        run(guide({"name": "sparse.sparse"}, nets), {"name": "dopri5"})


def test_every_field_of_guided_stands_in_the_guide():
    table = TEXT.split("| `Guided(denoise, ...)` |")[1].split("\n\n")[0]
    assert all(f"`{f.name}=" in table or f" {f.name}=" in table for f in fields(Guided)[1:])


@pytest.mark.parametrize("line", re.findall(r"```yaml\nsampler: (.*)\n```", TEXT))
def test_the_guides_samplers_work(line):
    section = yaml.safe_load(line)
    path = list(sample(section, TWO, X, C, None))
    assert len(path) == len(section.get("levels", [])) + 1 or len(path) == section["steps"] + 1


def test_the_guide_has_every_schedule():
    assert len(re.findall(r"```yaml\nsampler: (.*)\n```", TEXT)) == 3
    for name in noise.__all__:
        assert f"| `{name}`" in TEXT
