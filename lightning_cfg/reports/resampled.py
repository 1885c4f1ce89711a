"""The share that is read right, with its error over the classes and over the seeds."""

import torch
from torch import Tensor

from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.evaluation.tables import markdown_table
from lightning_cfg.interfaces import DataSet
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.rows import REAL, Cell

DRAWS = 4000
FEWEST = 20  # meanings from which on they are a sample themselves
TOLD = (
    "The share of samples that the classifier reads as their class, ± its standard error by {} "
    "bootstrap draws: {}what the classes say, {} of it, drawn anew with replacement, and with them "
    "all of their samples. Differences are by the same draws. "
    "{}"
)
FEW_SEEDS = (
    "Of {0} seeds the spread is seen {0} times: their part of an error is too small by a factor of "
    "about {1:.2f}."
)


def told(case: Case) -> list[str]:
    """Markdown: a row per set of samples; nothing where few classes were read, or none."""
    cells = [cell for cell in case.right if cell != REAL]
    if not cells:
        return []
    meaning = meanings(case.data_set)
    counts = {cell: counted(case.right[cell], meaning) for cell in cells}
    asked = next(iter(counts.values()))[0].sum(0) > 0
    if int(asked.sum()) < FEWEST:
        return []
    shares = {cell: resampled(n[:, asked], right[:, asked]) for cell, (n, right) in counts.items()}
    seeds = len(case.seeds)
    both = "the seeds with all that they trained, and " if seeds > 1 else ""
    few = FEW_SEEDS.format(seeds, (1 - 1 / seeds) ** 0.5) if seeds > 1 else ""
    beside, body = references(list(shares)), []
    for cell, share in shares.items():
        apart = ["" if cell == one else _written(share - shares[one]) for one in beside]
        evaluations = str(case.averages[cell].get("evaluations", ""))
        named = [cell.method, f"{cell.scale:g}", _kind(cell)]
        body.append([*named, evaluations, _written(share), *apart])
    against = [f"against {one.method} {one.scale:g}" for one in beside]
    head = ["method", "scale", "samples", "evaluations", "right", *against]
    return [TOLD.format(DRAWS, both, int(asked.sum()), few).strip(), markdown_table(head, body)]


def references(cells: list[Cell]) -> list[Cell]:
    """What the others are compared with: the first method at its first and its two last scales."""
    own = [c for c in cells if (c.method, c.kind) == (cells[0].method, cells[0].kind)]
    return list(dict.fromkeys((own[0], *own[-2:])))


def _kind(cell: Cell) -> str:
    return f"{cell.stage} {cell.flow}".strip()


def _written(share: Tensor) -> str:
    """What was measured ± the deviation of the draws."""
    error = f"{100 * share[1:].std().item():.1f} %"
    return f"{100 * share[0].item():.1f} ± {error}"


def meanings(data_set: DataSet) -> Tensor:
    """What each class says, (K,) numbers: prompts of the same parts say the same."""
    if data_set.parts is None:
        return torch.arange(max(1, data_set.num_classes))
    return data_set.parts.unique(dim=0, return_inverse=True)[1]


def counted(of_seeds: list[list[dict]], meaning: Tensor) -> tuple[Tensor, Tensor]:
    """How many samples there are of each meaning, and how many are right, (seeds, meanings)."""
    shape = len(of_seeds), int(meaning.max()) + 1
    n, right = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for i, rows in enumerate(of_seeds):
        for row in rows:
            n[i, meaning[row["class"]]] += row["n"]
            right[i, meaning[row["class"]]] += row["right"]
    return n, right


def resampled(n: Tensor, right: Tensor, draws: int = DRAWS) -> Tensor:
    """The share that is right, first as measured, then of every draw, (1 + draws,).

    n, right  (seeds, groups) samples, and those of them that are right
    Seeds and groups are drawn with replacement, each by itself (the crossed bootstrap, Owen 2007);
    the draws depend on their numbers alone, so that those of two methods are the same.
    """
    generator, (seeds, groups) = keyed("resampled", *n.shape), n.shape
    of_seeds = _times(draws, seeds, generator) if seeds > 1 else n.new_ones(1 + draws, 1)
    of_groups = _times(draws, groups, generator)
    total = ((of_seeds @ n) * of_groups).sum(1)
    return ((of_seeds @ right) * of_groups).sum(1) / total


def _times(draws: int, items: int, generator: torch.Generator) -> Tensor:
    """How often each item is in a draw of as many, (1 + draws, items); in the first once."""
    drawn = torch.randint(items, (draws, items), generator=generator)
    times = torch.zeros(draws, items, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones(draws, items, dtype=torch.float64))
    return torch.cat([times.new_ones(1, items), times])
