"""What the keys of a callable mean: the lines of its docstring that begin with their names."""

import inspect
import re
from collections.abc import Callable

# `name   meaning`, or `first, second   meaning`: two spaces or more between, the meaning's further
# lines below its first
ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)(?P<gap> {2,})(?P<text>\S.*)")


USUAL = {  # what a key means everywhere, where a docstring says nothing of its own
    "allow_few": "also of fewer samples than dimensions, where the covariance is singular",
    "atol": "absolute tolerance of a step",
    "batch_size": "samples that are worked on at once; without effect on what comes out",
    "blocks": "residual blocks per level on the way down",
    "channel_mult": "channels of each level, as multiples of `channels`",
    "channels": "of the first level",
    "data": "the data set",
    "device": "auto, cpu, cuda or cuda:N",
    "dropout": "share of a block's activations that is zero in training",
    "eta": "share of what is parallel that is kept",
    "guidance": "the method, by name, and its keys",
    "k": "nearest neighbours",
    "label_dropout": "share of the labels that training replaces by no class, which CFG needs",
    "learner": "how it is trained: what it is for, learning rate, averages of the weights",
    "levels": "the noise levels: a schedule by name, a list, or a function of one's own",
    "log_every": "steps between rows of the log",
    "logger": "csv, tensorboard or wandb; or a section {name, ...}, or a list of these",
    "max_evaluations": "after which an adaptive integration gives up",
    "model": "the parametrisation and its loss",
    "n": "samples in all",
    "net": "the network",
    "of": "another guidance method, on which this one works",
    "P_mean": "mean of ln sigma in training",
    "P_std": "standard deviation of ln sigma in training",
    "psi": "share of the rescaled condition",
    "quantile": "of the held-out points' distances, below which a sample is a near copy",
    "rho": "exponent of Karras' schedule: the larger, the more levels near sigma_min",
    "rtol": "relative tolerance of a step",
    "run_dir": "where everything is written",
    "sampler": "how the noise is taken away, by name, and its keys",
    "scale": "guidance scale w; 1 is the model itself",
    "seed": "from which everything random is drawn",
    "sigma_data": "standard deviation of the data",
    "sigma_high": "noise level up to which it works",
    "sigma_low": "noise level above which it works",
    "sigma_max": "highest noise level; left out, the model's",
    "sigma_min": "lowest noise level; left out, the model's",
    "splits": "of the samples, over which mean and deviation are taken",
    "steps": "from noise level to noise level",
    "title": "of the report",
    "warmup": "steps over which the learning rate rises from 0",
    "weight_decay": "AdamW's",
    "weights": "ema, raw, or the half-life in images of the average that is meant",
}


def meanings(function: Callable) -> dict[str, str]:
    """{key: what it means}, in one line each; of a class those of the classes it is made of too."""
    classes = inspect.getmro(function) if inspect.isclass(function) else (function,)
    found: dict[str, str] = dict(USUAL)
    for one in reversed(classes):
        for place in (one, vars(one).get("__init__")) if inspect.isclass(one) else (one,):
            doc = getattr(place, "__doc__", None)
            if doc and place is not object:
                found |= _entries(inspect.cleandoc(doc).splitlines())
    return found


def _entries(lines: list[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    names: list[str] = []
    column = 0
    for line in lines:
        if entry := ENTRY.fullmatch(line):
            names, column = entry["names"].split(", "), entry.start("text")
            found |= {name: [entry["text"]] for name in names}
        elif names and line[:column].isspace() and line.strip():
            for name in names:
                found[name].append(line.strip())
        else:
            names = []
    return {name: " ".join(texts) for name, texts in found.items()}
