"""The non-leaking augmentation of images of Karras et al. (2022, EDM, app. F.2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.errors import UserError
from lightning_cfg.runs.precision import matmul

# The low-pass filters of the biorthogonal wavelet 9/7 of Cohen, Daubechies & Feauveau (1992), from
# the centre outwards: doubling and then halving gives the image back exactly, and both are
# symmetric, so that quarter turns and shifts by whole pixels are exact too.
DOUBLING = (1.115087052456994, 0.591271763114247, -0.057543526228500, -0.091271763114247)
HALVING = (0.602949018236358, 0.266864118442872, -0.078223266528988, -0.016864118442875,
           0.026748757410810)  # fmt: skip


class AugmentPipe:
    """Flips and affine maps of images, with the labels that tell a network what was done.

    Each kind is applied to a sample with probability min(1, strength * p); the defaults are EDM's
    for CIFAR-10. Labels, all zero where nothing was done, with a ~ N(0, 1) and u ~ U(-pi, pi):

        0     xflip           1 with probability 1/2: left and right are exchanged
        1     yflip           the same for top and bottom
        2     scale           a: the content grows by 2^(0.2 a)
        3, 4  rotate_frac     cos u - 1, sin u: a turn by u, anticlockwise as seen
        5, 6  aniso           a cos u, a sin u: grows by 2^(0.2 a) along an axis, shrinks across;
                              the axis is turned by u, with probability 1/2 u = 0
        7, 8  translate_frac  a, a': moves right by W a / 8 and down by H a' / 8 pixels

    The network is trained on what it is told and asked with labels of zero, so that samples show
    none of it. Two things differ from EDM's own code: images are doubled and halved around the
    interpolation with a symmetric wavelet rather than the Symlet of order 6, and they continue
    beyond the border by reflection without end rather than for one image length and then grey.
    A sample that is not mapped is not touched at all. UserError for strengths that cannot be.
    """

    labels = 9

    def __init__(
        self,
        *,
        p: float = 0.12,
        xflip: float = 1e8,
        yflip: float = 1.0,
        scale: float = 1.0,
        rotate_frac: float = 1.0,
        aniso: float = 1.0,
        translate_frac: float = 1.0,
    ):
        strengths = (xflip, yflip, scale, rotate_frac, aniso, translate_frac)
        if not 0 <= p <= 1 or min(strengths) < 0:
            raise UserError(
                "AugmentPipe: p must be between 0 and 1 and every strength at least 0, "
                f"got p {p} and {', '.join(f'{s:g}' for s in strengths)}"
            )
        self.p, self.xflip, self.yflip, self.scale = p, xflip, yflip, scale
        self.rotate_frac, self.aniso, self.translate_frac = rotate_frac, aniso, translate_frac

    def __call__(self, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Images y (b, C, H, W) -> the same augmented, and labels (b, 9); UserError below 3 x 3.

        Every number is drawn whatever the strengths, so that one changes none of the others'.
        """
        if y.ndim != 4 or min(y.shape[2:]) < 3:
            raise UserError(
                "AugmentPipe: needs images (C, H, W) of at least 3 x 3 pixels, "
                f"got {tuple(y.shape[1:])}"
            )

        def sometimes(strength: float, value: Tensor) -> Tensor:
            return torch.where(draws.uniform() < strength * self.p, value, 0).double()

        def coin() -> Tensor:
            return draws.uniform() < 0.5

        def turn() -> Tensor:
            return math.pi * (2 * draws.uniform() - 1)

        xflip = sometimes(self.xflip, coin())
        yflip = sometimes(self.yflip, coin())
        size = sometimes(self.scale, draws.normal())
        angle = sometimes(self.rotate_frac, turn())
        stretch = sometimes(self.aniso, draws.normal())
        axis = torch.where(coin(), turn(), 0).double()
        shift = sometimes(self.translate_frac, draws.normal(2).T).T  # (b, 2)
        labels = [xflip, yflip, size, angle.cos() - 1, angle.sin()]
        labels += [stretch * axis.cos(), stretch * axis.sin(), *shift.T]
        labels = torch.stack(labels, 1)  # (b, 9)

        # where in the old image, seen from its centre, a point of the new one comes from
        growth = torch.stack([size + stretch, size - stretch], 1)
        back = rotation(-axis) @ torch.diag_embed(2 ** (-0.2 * growth)) @ rotation(axis)
        back = rotation(angle) @ back
        shift = shift * torch.tensor([y.shape[3] / 8, y.shape[2] / 8])  # in pixels, x and y

        flips = onto(labels[:, :2, None, None, None] == 1, y.device)
        y = torch.where(flips[:, 0], y.flip(3), y)
        y = torch.where(flips[:, 1], y.flip(2), y)
        rows = (labels[:, 2:] != 0).any(1).nonzero()[:, 0]
        if len(rows):
            there = onto(rows, y.device)
            y[there] = warp(y[there], back[rows], shift[rows])
        return y, onto(labels.to(y.dtype), y.device)


def rotation(angle: Tensor) -> Tensor:
    """Angles (b,) -> [[cos, -sin], [sin, cos]], (b, 2, 2)."""
    sin, cos = angle.sin(), angle.cos()
    return torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)


def warp(y: Tensor, back: Tensor, shift: Tensor) -> Tensor:
    """y'(q) = y(back (q - shift)), y reflected at its outer pixels without end.

    Bilinear interpolation at twice the resolution, so that little is blurred, and a low-pass filter
    on the way back, against aliasing. y (b, C, H, W); back (b, 2, 2) and shift (b, 2) in pixels,
    x before y, from the centre of the image.
    """
    H, W = y.shape[2:]
    double, halve = (kernel(taps, y) for taps in (DOUBLING, HALVING))
    # grid_sample counts from -1 to 1 between the outer pixels. The new image has a margin of two
    # pixels, four points at twice the resolution, for the filter that halves.
    old, new = torch.tensor([W - 1.0, H - 1.0]).double(), torch.tensor([W + 3.0, H + 3.0]).double()
    linear = back.double() * new / old[:, None]  # (b, 2, 2)
    offset = back.double() @ (-shift.double() * 2)[:, :, None] / old[:, None]  # (b, 2, 1)
    theta = onto(torch.cat([linear, offset], 2).to(y.dtype), y.device)

    # images are neither for half precision nor for TF32, which has the digits of 10 bits
    with torch.autocast(y.device.type, enabled=False), matmul("highest"):
        x = F.pad(y, (2, 2, 2, 2), mode="reflect")
        x = F.conv_transpose2d(x, double, stride=2, padding=7, groups=y.shape[1])
        # (b, C, 2 H - 1, 2 W - 1), pixel i at 2 i
        grid = F.affine_grid(theta, [*y.shape[:2], 2 * H + 7, 2 * W + 7], align_corners=True)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=True)
        return F.conv2d(x, halve, stride=2, groups=y.shape[1])


def kernel(taps: tuple[float, ...], y: Tensor) -> Tensor:
    """The separable filter of these taps, from the centre outwards, for each channel of y."""
    line = torch.tensor([*taps[:0:-1], *taps], dtype=torch.float64)
    return onto(line.outer(line).to(y.dtype), y.device).expand(y.shape[1], 1, -1, -1)
