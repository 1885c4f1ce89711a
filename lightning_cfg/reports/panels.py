"""The frame of every figure: panels in one style, a line per group, real data's level, a legend.

A panel has at most MOST_LINES lines in colours of their own, and its range is theirs; others are
grey and named where they end. A figure is no wider than WIDEST, and grows with its legend.

matplotlib is imported where a figure is drawn: it takes a second, and most imports draw none.
"""

import io
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning_cfg.metrics.over_seeds import OverSeeds
from lightning_cfg.runs.files import write

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe & Ito (2008)
TEN = tuple(  # Tableau's, of more classes than COLOURS has
    "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf".split()
)
DASHES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)))  # one for each
MOST_LINES = 6  # in colours of their own
GREY = "#b0b0b0"  # of the others
DPI = 110
WIDEST = 1800 / DPI  # inches
LONGEST = 28  # letters in a line of a legend
BRIEF = 26  # letters of a name at the end of a line
SMALLEST = 6  # points, of a letter
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
    colours: int = 256  # of `save`
    appendix: bool = False  # one of many alike, which stand last


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
        figure = Figure(figsize=(min(size[0], WIDEST), size[1]), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, **shared)
        yield figure, panels
        if legend is not None:
            found = [panel.get_legend_handles_labels() for panel in panels.flat]
            handles = {label: h for pair in found for h, label in zip(*pair, strict=True)}
            add_legend(figure, list(handles.values()), list(handles), **legend)
        without_tex(figure)


def add_legend(figure: Any, handles: list, labels: list[str], **where: Any) -> None:
    """A legend of the figure that is never cut: as many columns as fit, or a larger figure."""
    labels = [textwrap.fill(label, LONGEST) for label in labels]
    most = where.pop("ncols", 1)
    for ncols in range(most, 0, -1):
        legend = figure.legend(handles, labels, frameon=False, ncols=ncols, **where)
        for text in legend.get_texts():
            text.set_parse_math(False)
        width, height = _inches(legend)
        if ncols == 1 or width < figure.get_figwidth():
            break
        legend.remove()
    if "right" in where["loc"]:
        beside = sum(_inches(panel)[0] for panel in figure.axes[:1])  # one panel at the least
        figure.set_figwidth(min(WIDEST, max(figure.get_figwidth(), beside + width)))
    figure.set_figheight(max(figure.get_figheight(), height + 0.1))


def _inches(drawn: Any) -> tuple[float, float]:
    """Width and height of a part of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    box = drawn.get_window_extent(FigureCanvasAgg(drawn.figure).get_renderer())
    return box.width / drawn.figure.dpi, box.height / drawn.figure.dpi


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
    says: str = "",
    first: list[str] | None = None,
    most: int = 4,
    panel: tuple[float, float] = (2.5, 2.2),
    beside: float = 1.0,
    finish: Callable[[Any, str], None] = lambda axes, name: None,
    **shared: Any,
) -> Any:
    """A figure of a panel per name, mostly a metric's, with a line per group and one legend.

    titles  {name: title}
    floors  {name: value of real data}, drawn in the dashes `floor`
    says    what stands above the legend, such as how many samples a point is of
    first   labels of lines, those first that are to have colours where there are many
    most    panels across, of the size `panel` in inches; the legend is at least as wide as `beside`
    finish  what is left to do to a panel: scales, marks
    """
    drawn = {name: lines(name) for name in titles}
    labels = list(dict.fromkeys(line.label for some in drawn.values() for line in some))
    coloured = foremost(labels, first)
    known = [line for label in [*coloured, "real"] for line in textwrap.wrap(label, LONGEST)]
    beside = max(beside, 0.6 + max(_wide(text, 8) for text in (*known, *says.split("\n"))))
    grey = max((_wide(_cut(label), SMALLEST) for label in set(labels) - set(coloured)), default=0)
    each = panel[0] + 0.9 * grey  # some end within the panel
    across = max(1, min(most, len(titles), int((WIDEST - beside) / each)))
    down = -(-max(1, len(titles)) // across)
    size, legend = (each * across + beside, panel[1] * down), {"loc": "outside right upper"}
    legend |= {"title": says, "alignment": "left", "title_fontsize": 7} if says else {}
    with framed(down, across, size, legend, **shared) as (figure, panels):
        for axes in panels.flat[len(titles) :]:
            axes.axis("off")
        named = list(zip(panels.flat, titles.items(), strict=False))
        for axes, (name, title) in named:
            own = [line for line in drawn[name] if line.label in coloured]
            plotted(axes, own, floors.get(name), floor)
            axes.set(title=textwrap.fill(title, int(14 * panel[0])), xlabel=xlabel)
            finish(axes, name)
        for axes, (name, _) in named:
            beyond(axes, [line for line in drawn[name] if line.label not in coloured])
    return figure


def _cut(label: str) -> str:
    """The beginning of a name that stands beside a panel."""
    return label if len(label) <= BRIEF else f"{label[: BRIEF - 1]}…"


def _wide(text: str, points: float) -> float:
    """Inches that a text takes, about."""
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    return TextPath((0, 0), text.replace("$", "s"), size=points).get_extents().width / 72


def foremost(labels: list[str], first: list[str] | None = None) -> list[str]:
    """Those that get colours, in their own order: all where they are few, otherwise the first."""
    if len(labels) <= MOST_LINES:
        return labels
    wanted = [label for label in dict.fromkeys([*(first or []), *labels]) if label in labels]
    return [label for label in labels if label in wanted[:MOST_LINES]]


def beyond(axes: Any, lines: list[Line]) -> None:
    """Draw lines in grey within the range that a panel has, each named where it ends."""
    from matplotlib.patheffects import withStroke

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    across, up = axes.transData.transform, axes.transAxes.inverted().transform
    ends = []
    for line in lines:
        if line.points:
            x, y = zip(*line.points, strict=True)
            axes.plot(x, y, color=GREY, lw=0.7, zorder=1)
            end = axes.convert_xunits(x[-1]), float(y[-1])  # along an axis of texts too
            at, height = up(across(end))
            mark = "↑ " if height > 1 else "↓ " if height < 0 else ""
            ends.append((at, height, mark + _cut(line.label)))
    axes.set(xlim=(left, right), ylim=(bottom, top))
    outline = [withStroke(linewidth=1.5, foreground="white")]
    place = axes.get_subplotspec().get_position(axes.figure)
    wide, tall = (
        place.width * axes.figure.get_figwidth(),
        place.height * axes.figure.get_figheight(),
    )
    beside, within = ([end for end in ends if (end[0] > 0.85) == side] for side in (True, False))
    placed = apart([(1.0, y, label) for _, y, label in beside], tall)
    for end in sorted(within, key=lambda end: end[1]):
        placed.append(clear_of(placed, end, wide, tall))
    for x, y, says in placed:
        axes.annotate(
            says, (max(x, 0.0), y), (3, 0), xycoords="axes fraction", textcoords="offset points",
            fontsize=SMALLEST, color="#606060", va="center", annotation_clip=False,
            path_effects=outline,
        )  # fmt: skip


def apart(ends: list[tuple], height: float) -> list[tuple]:
    """Names of lines at their ends (x, y, name) moved up or down within 0 ... 1 until none covers
    another, in a panel of this height in inches, of which most is its frame."""
    if not ends:
        return []
    least = min(_line(height), 1 / len(ends))
    ends = sorted(ends, key=lambda end: end[1])
    y = [min(max(end[1], 0.0), 1.0) for end in ends]
    for i in range(1, len(y)):
        y[i] = max(y[i], y[i - 1] + least)
    y[-1] = min(y[-1], 1.0)
    for i in range(len(y) - 2, -1, -1):
        y[i] = min(y[i], y[i + 1] - least)
    return [(x, place, label) for (x, _, label), place in zip(ends, y, strict=True)]


def _line(height: float) -> float:
    """What a name takes of the height of a panel, of which most is its frame."""
    return 1.2 * SMALLEST / 72 / (0.75 * height)


def clear_of(placed: list[tuple], end: tuple, width: float, height: float) -> tuple:
    """The name of a line at its end (x, y, name), moved up or down to the nearest place within
    0 ... 1 where it covers none of those that are placed; where there is none, as it was."""

    def across(end: tuple) -> tuple[float, float]:
        return end[0], end[0] + 0.05 + _wide(end[2], SMALLEST) / (0.75 * width)

    least, (left, right) = _line(height), across(end)
    taken = [y for x, y, label in placed if left < across((x, y, label))[1] and x < right]
    wanted = min(max(end[1], 0.0), 1.0)
    free = [
        y
        for y in (wanted, *(y + step for y in taken for step in (least, -least)))
        if 0 <= y <= 1 and all(abs(y - other) > 0.999 * least for other in taken)
    ]
    return end[0], min(free, key=lambda y: abs(y - wanted), default=wanted), end[2]


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


def turn(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th of many lines, both its own; beyond six with other dashes."""
    n = len(COLOURS)
    return {"color": COLOURS[i % n], "ls": DASHES[(i + i // n) % n]}


def styles(labels: list[str], first: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Of every label that `foremost` gives colours its own."""
    return {label: turn(i) for i, label in enumerate(foremost(labels, first))}


def spread_out(values: list[float]) -> bool:
    """Do these want a logarithmic scale?"""
    return bool(values) and min(values) > 0 and max(values) > 5 * min(values)


def in_units(axis: Any, share: bool) -> None:
    """Ticks as numbers that can be read: shares in per cent, a short logarithmic axis in full."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() == "log" and low > 0 and high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    if share:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
        axis.set_minor_formatter(NullFormatter())


def few(scales: list[float]) -> list[float]:
    """At most as many as fit into a row, evenly among them, the first and the last with them."""
    if len(scales) <= MOST_SCALES:
        return scales
    return [scales[round(i * (len(scales) - 1) / (MOST_SCALES - 1))] for i in range(MOST_SCALES)]


def save(figure: Any, stem: Path, colours: int = 256) -> None:
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
