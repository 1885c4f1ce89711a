"""The frame of every figure: panels in one style, a line per group, real data's level, a legend.

matplotlib is imported where a figure is drawn: it takes a second, and most imports draw none.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning_cfg.metrics.over_seeds import OverSeeds
from lightning_cfg.runs.files import write

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe & Ito (2008)
DASHES = ("-", "--", ":")  # the colours again, for more lines than there are colours
DPI = 110
MOST_SCALES = 5  # in a row of panels
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.5,
    "pdf.compression": 9,
}


class Line(NamedTuple):
    """One line of a panel."""

    label: str
    points: list[tuple[Any, float]]
    style: dict[str, Any]  # of matplotlib's plot


class Drawn(NamedTuple):
    """A figure of a report."""

    name: str  # of its files, without ending
    caption: str
    figure: Any
    colours: int = 64  # of `save`


@contextmanager
def framed(
    down: int, across: int, size: tuple[float, float], legend: dict | None = None, **shared: Any
) -> Iterator[tuple[Any, Any]]:
    """A matplotlib Figure and its panels (down, across), to be drawn within this context.

    legend  where one of all panels' labels is put at the end, as keywords of Figure.legend
    shared  axes, as keywords of Figure.subplots
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, **shared)
        yield figure, panels
        if legend is not None:
            found = [panel.get_legend_handles_labels() for panel in panels.flat]
            handles = {label: h for pair in found for h, label in zip(*pair, strict=True)}
            figure.legend(handles.values(), handles.keys(), frameon=False, **legend)
        without_tex(figure)


def without_tex(figure: Any) -> None:
    """Show every text of a figure as it is: in a name `$` is no formula.

    The labels of a logarithmic axis are the only formulas here.
    """
    from matplotlib.text import Text

    formulas: set[int] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() in ("log", "symlog"):
                formulas |= {id(text) for text in axis.findobj(Text) if text is not axis.label}
    for text in figure.findobj(Text):
        if id(text) not in formulas:
            text.set_parse_math(False)


def per_name(
    titles: dict[str, str],
    lines: Callable[[str], list[Line]],
    *,
    xlabel: str,
    floors: dict[str, Any],
    floor: str = "--",
    most: int = 4,
    panel: tuple[float, float] = (2.5, 2.2),
    beside: float = 1.7,
    finish: Callable[[Any, str], None] = lambda axes, name: None,
    **shared: Any,
) -> Any:
    """A figure of a panel per name, mostly a metric's, with a line per group and one legend.

    titles  {name: title}
    floors  {name: value of real data}, drawn in the dashes `floor`
    most    panels across, of the size `panel` in inches; the legend is as wide as `beside`
    finish  what is left to do to a panel: scales, marks
    """
    drawn = {name: lines(name) for name in titles}
    labels = {line.label for some in drawn.values() for line in some}
    across = min(most, max(1, len(titles)))
    down = -(-max(1, len(titles)) // across)
    height = max(panel[1] * down, 0.4 + 0.17 * (len(labels) + 1))  # that of a long legend
    size, legend = (panel[0] * across + beside, height), {"loc": "outside right upper"}
    with framed(down, across, size, legend, **shared) as (figure, panels):
        for axes in panels.flat[len(titles) :]:
            axes.axis("off")
        for axes, (name, title) in zip(panels.flat, titles.items(), strict=False):
            plotted(axes, drawn[name], floors.get(name), floor)
            axes.set(title=title, xlabel=xlabel)
            finish(axes, name)
    return figure


def plotted(axes: Any, lines: list[Line], floor: float | None, dashes: str = "--") -> None:
    """Draw lines, and real data's level, on a panel.

    Over seeds with the 95 % intervals of the means, as bands where the line runs across; around
    real's level the deviation of a single draw.
    """
    for line in lines:
        if line.points:
            x, y = zip(*line.points, strict=True)
            (drawn,) = axes.plot(x, y, label=shown(line.label), **{"lw": 1, "ms": 3, **line.style})
            _intervals(axes, x, y, drawn.get_color())
    if floor is not None:
        axes.axhline(floor, color="black", lw=0.8, ls=dashes, label="real")
        if isinstance(floor, OverSeeds):
            around = floor - floor.deviation, floor + floor.deviation
            axes.axhspan(*around, color="black", alpha=0.1, lw=0)
    axes.grid(alpha=0.3, lw=0.4)


def _intervals(axes: Any, x: tuple, y: tuple, colour: str) -> None:
    """Of the values that are over seeds: a band; crosses, where both ways have intervals."""
    if not all(isinstance(value, OverSeeds) for value in y):
        return
    low, high = zip(*map(_ends, y), strict=True)
    crosses = all(isinstance(value, OverSeeds) for value in x)
    if len(y) > 1 and not crosses:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        return
    style = {"color": colour, "lw": 0.5, "alpha": 0.6}
    axes.vlines(x, low, high, **style)
    if crosses:
        axes.hlines(y, *zip(*map(_ends, x), strict=True), **style)


def _ends(value: OverSeeds) -> tuple[float, float]:
    """Of its interval, which is not drawn below 0 where no seed's number is."""
    low = value - value.half
    return max(low, 0.0) if min(value.by_seed.values()) >= 0 else low, value + value.half


def shown(label: str) -> str:
    """A label that legends show: from one that begins with _ matplotlib makes none."""
    return f"\u200b{label}" if label.startswith("_") else label


def turn(i: int) -> dict[str, str]:
    """Colour and dashes of the i-th of many lines."""
    return {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i // len(COLOURS) % len(DASHES)]}


def spread_out(values: list[float]) -> bool:
    """Do these want a logarithmic scale?"""
    return bool(values) and min(values) > 0 and max(values) > 5 * min(values)


def few(scales: list[float]) -> list[float]:
    """At most as many as fit into a row, evenly among them, the first and the last with them."""
    if len(scales) <= MOST_SCALES:
        return scales
    return [scales[round(i * (len(scales) - 1) / (MOST_SCALES - 1))] for i in range(MOST_SCALES)]


def save(figure: Any, stem: Path, colours: int = 64) -> None:
    """stem.png and stem.pdf, small; the PNG with a palette of so many colours (0: all)."""
    import matplotlib
    from PIL import Image

    def png(path: Path) -> None:
        image = Image.open(io.BytesIO(png_of(figure))).convert("RGB")
        if colours:  # this way of choosing keeps the rare ones, of thin lines
            image = image.quantize(colours, method=Image.Quantize.MAXCOVERAGE)
        image.save(path, optimize=True)

    def pdf(path: Path) -> None:  # no date, so that the same figure is the same file
        figure.savefig(path, format="pdf", dpi=80, metadata={"CreationDate": None})

    with matplotlib.rc_context(STYLE):
        write(stem.with_name(f"{stem.name}.png"), png)
        write(stem.with_name(f"{stem.name}.pdf"), pdf)


def png_of(figure: Any) -> bytes:
    """A PNG file of the figure."""
    import matplotlib

    pixels = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(pixels, format="png", dpi=DPI)
    return pixels.getvalue()
