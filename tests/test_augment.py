import math

import pytest
import torch

from lightning_cfg.data.augment import AugmentPipe, warp
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError

KINDS = ("xflip", "yflip", "scale", "rotate_frac", "aniso", "translate_frac")
COLUMNS = {
    "xflip": [0], "yflip": [1], "scale": [2], "rotate_frac": [3, 4], "aniso": [5, 6],
    "translate_frac": [7, 8],
}  # fmt: skip


class Constant:
    """Draws of one uniform and one normal number, over and over."""

    def __init__(self, n, uniform=0.75, normal=1.0):
        self.n, self.u, self.z = n, uniform, normal

    def uniform(self):
        return torch.full((self.n,), self.u)

    def normal(self, *shape):
        return torch.full((self.n, *shape), self.z)


def only(*kinds):
    """A pipe that always does these kinds and never the others."""
    return AugmentPipe(p=0.5, **{kind: 1e8 * (kind in kinds) for kind in KINDS})


@pytest.fixture
def y():
    return torch.randn(4, 3, 16, 32, generator=torch.Generator().manual_seed(0))


def reflected(i, n):
    """Index i, from anywhere, into n pixels that are reflected at the outer ones without end."""
    return (n - 1) - ((n - 1) - i % (2 * n - 2)).abs()


def shifted(y, dx, dy):
    h, w = y.shape[2:]
    rows, columns = reflected(torch.arange(h) - dy, h), reflected(torch.arange(w) - dx, w)
    return y[:, :, rows][:, :, :, columns]


def test_at_p_zero_nothing_is_done(y):
    out, labels = AugmentPipe(p=0.0)(y, Draws(seed=0, step=0, batch_size=4))
    assert torch.equal(out, y)
    assert torch.equal(labels, torch.zeros(4, 9))


@pytest.mark.parametrize("kind, dim", [("xflip", 3), ("yflip", 2)])
def test_flips_are_exact(y, kind, dim):
    out, labels = only(kind)(y, Constant(4, uniform=0.25))
    assert torch.equal(out, y.flip(dim))
    assert torch.equal(labels, torch.eye(9)[COLUMNS[kind]].expand(4, 9))
    out, labels = only(kind)(y, Constant(4, uniform=0.75))  # the coin says no
    assert torch.equal(out, y)
    assert not labels.any()


def test_shifts_by_whole_pixels_are_exact(y):
    """One standard deviation: right by W / 8 = 4 and down by H / 8 = 2."""
    out, labels = only("translate_frac")(y, Constant(4))
    assert torch.equal(labels, torch.tensor([0, 0, 0, 0, 0, 0, 0, 1.0, 1]).expand(4, 9))
    torch.testing.assert_close(out, shifted(y, 4, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dx, dy", [(1, 0), (0, -1), (-7, 5), (31, 15), (100, -41)])
def test_beyond_the_border_is_reflection_without_end(y, dx, dy):
    shift = torch.tensor([[dx, dy]]).double().expand(4, 2)
    out = warp(y, torch.eye(2).expand(4, 2, 2), shift)
    torch.testing.assert_close(out, shifted(y, dx, dy), rtol=0, atol=1e-3)


def test_quarter_turns_are_exact():
    y = torch.randn(2, 3, 15, 15, generator=torch.Generator().manual_seed(0))
    out, labels = only("rotate_frac")(y, Constant(2, uniform=0.75))  # u = pi / 2
    torch.testing.assert_close(out, y.rot90(1, (2, 3)), rtol=0, atol=1e-4)
    expected = torch.tensor([0, 0, 0, -1.0, 1, 0, 0, 0, 0]).expand(2, 9)
    torch.testing.assert_close(labels, expected, rtol=0, atol=1e-6)
    out, _ = only("rotate_frac")(y, Constant(2, uniform=0.25))  # u = -pi / 2
    torch.testing.assert_close(out, y.rot90(-1, (2, 3)), rtol=0, atol=1e-4)


def waves(x, y):
    """A smooth picture, at any x to the right and y down from the centre, in pixels."""
    return torch.sin(0.35 * x + 0.2 * y + 0.5) + torch.cos(0.15 * x - 0.3 * y)


def described(label, h, w):
    """The picture that a row of labels describes, and where its pixels were within the old one.

    Two candidates: (a, u) and (-a, u + pi) have the same labels of `aniso`.
    """
    q = torch.stack(
        torch.meshgrid(torch.arange(w) - (w - 1) / 2, torch.arange(h) - (h - 1) / 2, indexing="xy")
    ).double()
    candidates = []
    for sign in (1, -1):
        xflip, yflip, scale, cos, sin, a_cos, a_sin, dx, dy = label.double().tolist()
        x, y = q[0] - w / 8 * dx, q[1] - h / 8 * dy
        a, u = sign * math.hypot(a_cos, a_sin), math.atan2(sign * a_sin, sign * a_cos)
        along, across = x * math.cos(u) - y * math.sin(u), x * math.sin(u) + y * math.cos(u)
        along, across = along / 2 ** (0.2 * a), across * 2 ** (0.2 * a)
        x, y = (
            along * math.cos(u) + across * math.sin(u),
            across * math.cos(u) - along * math.sin(u),
        )
        turn = math.atan2(sin, cos + 1)
        x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
        x, y = x / 2 ** (0.2 * scale), y / 2 ** (0.2 * scale)
        inside = (x.abs() < w / 2 - 4) & (y.abs() < h / 2 - 4)
        x, y = (-x if xflip else x), (-y if yflip else y)
        candidates.append((waves(x, y), inside))
    return candidates


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS[2:]], KINDS])
def test_the_labels_describe_what_was_done(kinds):
    h, w, n = 24, 32, 12
    at = [torch.arange(size).double() - (size - 1) / 2 for size in (h, w)]
    old = waves(at[1][None, :], at[0][:, None]).float().expand(n, 1, h, w)
    out, labels = only(*kinds)(old, Draws(seed=1, step=0, batch_size=n))
    assert (out - old).square().flatten(1).mean(1).sqrt().min() > 0.01  # something was done
    for row in range(n):
        errors = []
        for expected, inside in described(labels[row], h, w):
            assert inside.sum() > 30
            errors.append((out[row, 0].double() - expected)[inside].abs().max().item())
        assert min(errors) < 0.03, (row, errors)


@pytest.mark.parametrize("rows", [[slice(0, 4), slice(4, 8)], [slice(0, 1), slice(1, 8)]])
def test_several_ranks_do_what_one_does(rows):
    y = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    pipe = AugmentPipe(p=0.5)
    whole, labels = pipe(y, Draws(seed=2, step=7, batch_size=8))
    parts = [pipe(y[r], Draws(seed=2, step=7, batch_size=8, rows=r)) for r in rows]
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), whole, rtol=0, atol=1e-6)
    again, _ = pipe(y, Draws(seed=2, step=7, batch_size=8))
    assert torch.equal(again, whole)
    other, _ = pipe(y, Draws(seed=2, step=8, batch_size=8))
    assert not torch.equal(other, whole)


def test_kinds_are_as_frequent_as_edm_has_them():
    n = 20_000
    _, labels = AugmentPipe()(torch.zeros(n, 1, 3, 3), Draws(seed=0, step=0, batch_size=n))
    expected = dict.fromkeys(KINDS, 0.12) | {"xflip": 0.5, "yflip": 0.06}
    for kind, rate in expected.items():
        done = (labels[:, COLUMNS[kind]] != 0).any(1).double().mean().item()
        assert done == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / n)), kind
    for column in (2, 7, 8):
        a = labels[:, column][labels[:, column] != 0]
        assert a.mean().item() == pytest.approx(0, abs=4 / math.sqrt(len(a)))
        assert a.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * len(a)))
    turned = labels[:, 3] != 0
    u = torch.atan2(labels[turned, 4], labels[turned, 3] + 1)
    assert u.std().item() == pytest.approx(math.pi / math.sqrt(3), rel=0.06)
    stretched = (labels[:, 5:7] != 0).any(1)
    straight = (labels[stretched, 6] == 0).double().mean().item()
    assert straight == pytest.approx(0.5, abs=0.05)


def test_a_sample_to_which_nothing_is_done_is_not_touched():
    y = torch.rand(64, 3, 12, 12)
    before = y.clone()
    out, labels = AugmentPipe()(y, Draws(seed=0, step=0, batch_size=64))
    untouched = ~labels.any(1)
    assert 10 < untouched.sum() < 40
    assert torch.equal(out[untouched], y[untouched])
    assert (out - y)[~untouched].abs().flatten(1).max(1).values.min() > 1e-3
    assert torch.equal(y, before)


@pytest.mark.parametrize("off", KINDS)
def test_without_one_kind_the_others_stay(off):
    y = torch.rand(32, 1, 8, 8)
    draws = dict(seed=0, step=0, batch_size=32)
    _, labels = AugmentPipe(p=0.9)(y, Draws(**draws))
    _, fewer = AugmentPipe(p=0.9, **{off: 0.0})(y, Draws(**draws))
    assert labels[:, COLUMNS[off]].any()
    labels[:, COLUMNS[off]] = 0
    assert torch.equal(fewer, labels)


def test_half_precision_of_the_network_does_not_reach_the_images():
    y = torch.rand(8, 3, 12, 12)
    expected, _ = only(*KINDS)(y, Draws(seed=0, step=0, batch_size=8))
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = only(*KINDS)(y, Draws(seed=0, step=0, batch_size=8))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("settings", [{"p": 1.5}, {"p": -0.1}, {"scale": -1.0}])
def test_strengths_that_cannot_be_are_refused(settings):
    with pytest.raises(UserError, match="between 0 and 1") as error:
        AugmentPipe(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 8), (16, 16)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(UserError, match="at least 3 x 3"):
        AugmentPipe()(torch.zeros(4, *shape), Draws(seed=0, step=0, batch_size=4))
