"""What is scored: samples in batches, wherever they come from, and what is known of them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_cfg.config import Input
from lightning_cfg.data.arrays import Arrays
from lightning_cfg.data.image_files import Folder, Zip
from lightning_cfg.data.split import Split
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.decoded import Decoding
from lightning_cfg.evaluation.provenance import cost, guidance_of, in_words, of_run, told
from lightning_cfg.interfaces import NULL
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.pngs import drawable, quantised, signed
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.runs.tensors import load_samples
from lightning_cfg.runs.to_come import ToCome
from lightning_cfg.runs.units import check_units
from lightning_cfg.sampling.guided import scale_of, with_scale
from lightning_cfg.sampling.prepared import Prepared, prepare
from lightning_cfg.sampling.sample import check_finite
from lightning_cfg.sampling.seeds import check_seeds


class SampleSet:
    """n samples that are read a batch at a time.

    shape   of one sample
    c       (n,) their classes; NULL for all where none are known
    seeds   (n,) their seeds; their numbers where they have none
    about   what every number of theirs carries: source, sampler, guidance, seeds, model_weights
    guidance  that made them, a config's section; None where that is not known
    """

    guidance: dict | None = None

    def __init__(
        self,
        shape: tuple[int, ...],
        c: Tensor,
        read: Callable[[Tensor], Tensor],
        about: dict[str, str],
        seeds: Tensor | None = None,
    ):
        self.shape, self.c, self.about, self._read = tuple(shape), c, about, read
        self.seeds = torch.arange(len(c)) if seeds is None else seeds

    def __len__(self) -> int:
        return len(self.c)

    @property
    def labelled(self) -> bool:
        return bool((self.c != NULL).all())

    @property
    def scale(self) -> float | None:
        """Of their guidance, where that is known and has one."""
        scale = None if self.guidance is None else scale_of(self.guidance)
        return None if scale is None else float(scale)

    @property
    def method(self) -> str | None:
        """Their guidance apart from its scale, in words."""
        plain = None if self.guidance is None else with_scale(self.guidance, 1.0)
        return None if plain is None else in_words(plain)

    @property
    def spent(self) -> dict:
        """What they have cost so far, where they are made while they are read."""
        return {}

    @spent.setter
    def spent(self, spent: dict) -> None:
        """What an earlier call has spent on the first of them."""

    def batches(self, size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples x (b, *shape) float32 and their classes (b,), in order, from this batch on."""
        for rows in torch.arange(len(self)).split(size)[first:]:
            yield self._read(rows), self.c[rows]

    def decoded(self, decode: Decoding | None) -> "SampleSet":
        """Latents as images; what are images already as they are."""
        if decode is None or not decode.takes(self.shape):
            return self
        about = {**self.about, "decode": decode.told}
        made = SampleSet(
            decode.shape(self.shape), self.c, lambda i: decode(self._read(i)), about, self.seeds
        )
        made.guidance = self.guidance
        return made

    def part(self, i: int, parts: int) -> "SampleSet":
        """The i-th of so many equal parts, in order."""
        n = len(self) // parts
        return self.chosen(torch.arange(i * n, (i + 1) * n))

    def shared(self, ranks: Ranks) -> "SampleSet":
        """This rank's own samples."""
        return self.chosen(ranks.share(torch.arange(len(self))))

    def chosen(self, rows: Tensor) -> "SampleSet":
        """Some of the samples."""
        about, seeds = dict(self.about), self.seeds[rows]
        some = SampleSet(self.shape, self.c[rows], lambda i: self._read(rows[i]), about, seeds)
        some.guidance = self.guidance
        return some


class Generated(SampleSet):
    """Samples of these seeds, which are made while they are scored, and not kept."""

    def __init__(
        self,
        made: Prepared,
        seeds: Tensor,
        batch_size: int,
        about: dict[str, str],
        decode: Decoding | None = None,
    ):
        self._made, self._seeds, self._rows, self._decode = made, seeds, batch_size, decode
        self._spent: dict = {}
        self.shape = made.shape if decode is None else decode.shape(made.shape)
        first, last = int(seeds[0]), int(seeds[-1])
        self.about = {"source": "generated", **about, "seeds": f"{first} ... {last}"}

    def __len__(self) -> int:
        return len(self._seeds)

    @property
    def labelled(self) -> bool:
        return True

    @property
    def steps(self) -> dict[str, int]:
        """At which step of its training each network was saved, by role."""
        return self._made.steps

    @torch.no_grad()
    def batches(self, size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples and classes, in batches of the generation's own size."""
        for seeds in self._seeds.split(self._rows)[first:]:
            before = self._made.spent()
            began = time.monotonic()
            c, steps = self._made.start(seeds)
            *_, (_, x) = steps
            check_finite(x, seeds)
            self._cost(before, began, len(x))
            x = as_8_bit(x.float().cpu()) if self._decode is None else self._decode(x.float())
            yield x, c.cpu()

    def _cost(self, before: dict[str, int], began: float, n: int) -> None:
        """Say in `about` what the samples have cost so far, of which these n are the last."""
        own = {r: evaluations - before[r] for r, evaluations in self._made.spent().items()}
        before_it = self._spent or {"of": {}, "seconds": 0.0, "n": 0}
        of_each = {role: before_it["of"].get(role, 0) + k for role, k in own.items()}
        seconds = before_it["seconds"] + time.monotonic() - began
        self.spent = {"of": of_each, "seconds": seconds, "n": before_it["n"] + n}

    @property
    def spent(self) -> dict:
        """The evaluations of each network and the seconds of the first n samples."""
        return self._spent

    @spent.setter
    def spent(self, spent: dict) -> None:
        self._spent, n = spent, spent["n"]
        evaluations = {role: k / n for role, k in spent["of"].items()}
        self.about |= cost(evaluations, spent["seconds"] / n)

    def shared(self, ranks: Ranks) -> "Generated":
        """Those of this rank's own seeds; what they cost is told of them alone."""
        some = self._of(ranks.share(self._seeds), self.about, self._decode)
        some.about["seeds"] = self.about["seeds"]
        return some

    def part(self, i: int, parts: int) -> "Generated":
        """A draw of as many samples from the seeds that follow: n is of each draw."""
        return self._of(self._seeds + i * len(self), self.about, self._decode)

    def decoded(self, decode: Decoding | None) -> "Generated":
        if decode is None or not decode.takes(self.shape):
            return self
        return self._of(self._seeds, {**self.about, "decode": decode.told}, decode)

    def _of(self, seeds: Tensor, about: dict[str, str], decode: Decoding | None) -> "Generated":
        return Generated(self._made, seeds, self._rows, about, decode)


def generated(*, n: int, seed: int, batch_size: int, **keys: Any) -> Generated:
    """Samples by the keys of the verb `generate`; UserError as it raises them."""
    if n < 1 or batch_size < 1:
        raise UserError(f"n={n} and batch_size={batch_size} must be at least 1")
    check_seeds(seed, n)
    about = told(keys)
    return Generated(prepare(**keys), torch.arange(seed, seed + n), batch_size, about)


def held(
    x: Tensor,
    c: Tensor,
    about: dict[str, str],
    *,
    seeds: Tensor | None = None,
    as_bytes: bool = True,
) -> SampleSet:
    """Samples in memory, (n, *shape), images as 8 bits have them."""
    x = as_8_bit(x) if as_bytes else x
    return SampleSet(x.shape[1:], c, lambda rows: x[rows], about, seeds)


def input_of(path: str | Path, inside: str = SAMPLES) -> Path:
    """What counts of a set by its content: a run's file, or a file or folder of images as a whole.

    Raises UserError if there is nothing of the kind.
    """
    place = Path(path)
    if place.is_dir() and not any((place / name).is_file() for name in (inside, "identity.json")):
        return place
    return output_of(path, inside)


Samples = Annotated[str, Input(input_of)]  # any of these, which counts by its content


def read_set(
    path: str | Path, data: Any = None, *, as_bytes: bool = True, decode: Decoding | None = None
) -> SampleSet:
    """The samples of a run of ours, a sample file, or anyone's images: a folder, zip, .npz or .npy.

    data      the data set that they are compared with: their shape and classes must be its
    as_bytes  images as 8 bits have them, also where the file holds floats
    decode    makes images of latents, whose shape then is that of the data
    UserError where there is nothing of the kind, or it is damaged or does not fit, naming the file.
    """
    if isinstance(path, ToCome):
        return _to_come(path.inside(SAMPLES), data, decode)
    path = Path(path)
    if path.suffix.lower() == ".zip":
        return _images(Zip(path), data)
    if path.suffix.lower() in (".npz", ".npy"):
        return _images(Arrays(path), data)
    if path.is_dir() and not any((path / name).is_file() for name in (SAMPLES, "identity.json")):
        return _images(Folder(path), data)
    file = output_of(path, SAMPLES)
    classes = None if data is None else data.num_classes
    tensors = load_samples(file, None if data is None or decode else data.shape, classes)
    latent = decode is not None and decode.takes(tuple(tensors["x"].shape[1:]))
    if not latent:
        check_units(file, tensors["x"])
    run = path if path.is_dir() else file.absolute().parent.parent
    x, seeds = tensors["x"], tensors["seed"]
    seeds = f"{int(seeds.min())} ... {int(seeds.max())}"
    about = {"source": str(path), **of_run(run), "seeds": seeds}
    as_bytes = as_bytes and not latent
    samples = held(x, tensors["c"], about, seeds=tensors["seed"], as_bytes=as_bytes)
    samples.guidance = guidance_of(run)
    return _fitting(file, samples.decoded(decode), data)


def _to_come(file: ToCome, data: Any, decode: Decoding | None) -> SampleSet:
    x, c, of = file.content["x"], file.content["c"], Path(file)
    samples = SampleSet(x.shape[1:], c, lambda rows: x[rows], {"source": str(of)})
    samples.guidance = file.content.get("guidance")
    return _fitting(of, samples.decoded(decode), data)


def _fitting(file: Path, samples: SampleSet, data: Any) -> SampleSet:
    if data is not None and data.shape and samples.shape != tuple(data.shape):
        raise UserError(f"{file} holds samples of shape {samples.shape}, not {data.shape} as here")
    return samples


def real_set(data: Any, split: str, per_class: int | None, *, in_order: bool = False) -> SampleSet:
    """Real points of a split of a data set, class after class; UserError as its `real` raises.

    in_order  images in the order of their files
    """
    about = {"source": f"{type(data).__name__}, {split}"}
    if data.rows is not None:  # images, which may be too many to be decoded at once
        y, chosen, c = data.rows(split, per_class)
        if in_order:
            order = chosen.argsort()
            chosen, c = chosen[order], c[order]
        return SampleSet(data.shape, c.cpu(), lambda rows: _points(y[chosen[rows]]).cpu(), about)
    y, c = data.real(split, per_class)
    return SampleSet(data.shape, c, lambda rows: y[rows], about)


def all_of(points: SampleSet) -> Tensor:
    """All of the samples at once, (n, *shape)."""
    return torch.cat([x for x, _ in points.batches(1024)])


def _points(y: Tensor) -> Tensor:
    """Bytes of images in [-1, 1]; latents as they are."""
    return y if y.is_floating_point() else signed(y)


def as_8_bit(x: Tensor) -> Tensor:
    """Images (n, C, H, W) as an 8-bit file of them has them, back in [-1, 1] (EDM's rounding).

    So a sample scores the same from memory and from a PNG. What overshoots is clipped; anything but
    images is left as it is.
    """
    return signed(quantised(x)) if drawable(tuple(x.shape[1:])) else x


def _images(files: Split, data: Any) -> SampleSet:
    shape = files.shape
    if data is not None and data.shape and tuple(data.shape) != shape:
        raise UserError(
            f"{files.path} holds images of shape {shape}, not {tuple(data.shape)} as here"
        )
    c = _classes(files, data)
    about = {"source": str(files.path)}
    about |= {"left_out": files.left_out} if files.left_out else {}
    return SampleSet(shape, c, lambda rows: signed(files[rows]), about)


def _classes(files: Split, data: Any) -> Tensor:
    """The images' classes as the data number them, or NULL where they have none of these.

    Folders that bear no class's name or number are how a generator has sorted its files.
    """
    labels, folders = files.labels if data is None or data.num_classes else (None, None)
    unknown = torch.full((len(files),), NULL)
    if labels is None:
        return unknown if data is None or data.num_classes else torch.zeros_like(unknown)
    if folders is not None:
        if data is None:
            return unknown
        numbers = [str(k) for k in range(data.num_classes)]
        known = [n for n in (data.class_names, numbers) if n and set(folders) <= set(n)]
        if not known:
            return unknown
        labels = [known[0].index(folders[k]) for k in labels]
    last = None if data is None else data.num_classes - 1
    if last is not None and max(labels) > last:
        raise UserError(f"{files.path} holds class {max(labels)}, only 0 ... {last} are known here")
    return torch.tensor(labels)
