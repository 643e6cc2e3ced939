"""Plot a LoRA: its size per block and kind of layer, and the rank it needs.

With two LoRAs also their cosine per block. All numbers are computed from the factors (`spectrum`), never from a dense
change.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base_models import find_model
from ..base_models.places import KINDS, LayerPosition, position_of
from ..errors import I2LError
from ..lora import LoRA
from .fuse import common_base_model
from .spectrum import cosine_of, inner_by_weight, spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (1200, 900)  # pixels (width, height)

_INCHES = 11.0  # width of the drawing that font sizes are chosen for
_BACK, _PANEL, _STRIPE, _GRID = "#16181d", "#1e2128", "#282c36", "#3a3f4b"
_INK, _FAINT = "#f1efea", "#a7adba"
_COLOURS: Mapping[str, str] = dict(
    zip(KINDS, ("#5aa9ff", "#ffb84d", "#b892ff", "#63d2a1", "#8b93a7"), strict=True)
)
_ONE, _TWO, _ALIKE, _OPPOSED = "#5aa9ff", "#ffb84d", "#63d2a1", "#ff6b6b"
_GAP = 0.8  # between sections, in bars
_NARROW = 5.2  # bars that the title of a section takes
_WIDEST = 1.5  # bar, in a section of few
_APART = 0.026  # of the axis, between two numbers
_ROWS = 7  # bars of layers by kind
_MARKS = (0.9, 0.99)  # fractions of the energy whose rank is marked

Energies = Mapping[LayerPosition, float]


def draw(lora: LoRA, other: LoRA | None = None, size: tuple[int, int] = SIZE) -> Tensor:
    """Plot one LoRA, or `lora` and `other` in comparison. Returns (H, W, 3) float32, 0..1. `size`: (W, H) in pixels.

    Raises I2LError when a LoRA is not finite, when the two are for different base models, or without matplotlib.
    """
    loras = [lora] if other is None else [lora, other]
    common_base_model(loras)
    for each in loras:
        each.check_finite()
    figure = _figure(size)
    if other is None:
        _draw_one(figure, lora)
    else:
        _draw_two(figure, lora, other)
    return _pixels(figure)


def inner_by_position(a: LoRA, b: LoRA) -> dict[LayerPosition, float]:
    """Inner products of two LoRAs by block and kind of layer; with itself, the energies of a LoRA."""
    found: dict[LayerPosition, float] = {}
    for weight, product in inner_by_weight(a, b).items():
        place = position_of(weight)
        found[place] = found.get(place, 0.0) + float(product)
    return found


def kept_by_rank(lora: LoRA) -> Tensor:
    """The fraction of the LoRA's energy that is left when every layer keeps 1, 2, ... directions; (rank,), rising to 1.

    What `fuse.svd` reports at these ranks. Ones for a LoRA that is zero.
    """
    squares = torch.zeros(lora.rank, dtype=torch.float64)
    for layer in lora.layers.values():
        squares[: layer.rank] += spectrum(layer).square().cpu()
    total = squares.sum()
    return squares.cumsum(0) / total if total > 0 else torch.ones_like(squares)


# what is drawn


def _draw_one(figure: Figure, lora: LoRA) -> None:
    energies = inner_by_position(lora, lora)
    _header(
        figure,
        "Where this style acts" if any(energies.values()) else "This LoRA changes nothing",
        _about(lora),
    )
    axes = _panel(figure, (0.07, 0.47, 0.90, 0.36), "size of the change, by block")
    bars = _bars(energies)
    floor = [0.0] * len(bars)
    for kind in KINDS:
        heights = [
            _size(bar.sum(energies)) * _share(bar.sum(energies, kind), bar.sum(energies)) for bar in bars
        ]
        if any(heights):
            _draw_bars(axes, bars, heights, _COLOURS[kind], floor, label=kind)
        floor = [a + b for a, b in zip(floor, heights, strict=True)]
    _sections(axes, bars, (0, 1.2 * max(floor) or 1))
    _legend(axes)
    _energy_by_kind(_panel(figure, (0.225, 0.085, 0.235, 0.275), "share of each kind of layer"), energies)
    _ranks(_panel(figure, (0.575, 0.085, 0.395, 0.275), "what a lower rank keeps"), {"": lora}, (_ONE,))


def _draw_two(figure: Figure, one: LoRA, two: LoRA) -> None:
    products = inner_by_position(one, two)
    first, second = (
        {place: 0.0 for place in products} | inner_by_position(lora, lora) for lora in (one, two)
    )
    overall = _cosine(*(sum(values.values()) for values in (products, first, second)))
    _header(
        figure,
        f"How alike: {overall:.2f}",
        "1: the same style   ·   0: nothing in common   ·   -1: opposites",
    )
    bars = _bars(products)

    axes = _panel(figure, (0.07, 0.655, 0.90, 0.175), "cosine between the changes, by block")
    cosines = [_cosine(bar.sum(products), bar.sum(first), bar.sum(second)) for bar in bars]
    _draw_bars(axes, bars, cosines, [_OPPOSED if value < 0 else _ALIKE for value in cosines])
    _sections(axes, bars, (min(-0.1, 1.15 * min(cosines)), 1.35), numbers=False)
    axes.set_yticks([0, 0.5, 1])

    axes = _panel(figure, (0.07, 0.45, 0.90, 0.165), "size of the change, by block")
    up, down = ([_size(bar.sum(energies)) for bar in bars] for energies in (first, second))
    _draw_bars(axes, bars, up, _ONE, label=f"first, size {_size(sum(first.values())):.3g}")
    _draw_bars(axes, bars, [-x for x in down], _TWO, label=f"second, size {_size(sum(second.values())):.3g}")
    most = max(*up, *down) or 1
    _sections(axes, bars, (-1.1 * most, 1.1 * most), titles=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    _legend(axes)

    _cosines_by_kind(
        _panel(figure, (0.225, 0.085, 0.235, 0.235), "cosine by kind of layer"), products, first, second
    )
    loras = {"first": one, "second": two}
    _ranks(_panel(figure, (0.575, 0.085, 0.395, 0.235), "what a lower rank keeps"), loras, (_ONE, _TWO))


def _about(lora: LoRA) -> str:
    model = find_model(lora.base_model)
    parts = [
        model.title if model else lora.base_model,
        _counted(len(lora.references), "reference"),
        f"rank {lora.rank}",
        _counted(lora.n_layers, "layer"),
    ]
    return "   ·   ".join(part for part in parts if part)


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number > 1 else ''}" if number else ""


def _size(energy: float) -> float:
    return math.sqrt(max(energy, 0.0))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _percent(fraction: float) -> str:
    """Never 100 % for less than all."""
    return f"{math.floor(1000 * fraction + 1e-9) / 10:g} %"


def _cosine(product: float, energy_a: float, energy_b: float) -> float:
    return float(cosine_of(*(torch.tensor(x, dtype=torch.float64) for x in (product, energy_a, energy_b))))


# blocks along the horizontal axis


@dataclass(frozen=True)
class _Bar:
    """One block: where it is drawn and what it holds."""

    x: float
    width: float
    section: str
    index: int
    places: frozenset[LayerPosition]

    def sum(self, values: Energies, kind: str = "") -> float:
        return sum(v for place, v in values.items() if place in self.places and kind in ("", place.kind))


def _bars(places: Iterable[LayerPosition]) -> list[_Bar]:
    """Blocks in the order of depth, section by section; the bars of short sections are wider."""
    bars, left = [], 0.0
    ordered = sorted(places, key=lambda place: place.order)
    for section, inside in itertools.groupby(ordered, key=lambda place: place.section):
        blocks = [
            (i, frozenset(group)) for i, group in itertools.groupby(inside, key=lambda place: place.index)
        ]
        width = max(1.0, _NARROW / len(blocks))
        for index, group in blocks:
            bars.append(_Bar(left + width / 2, width, section, index, group))
            left += width
        left += _GAP
    return bars


def _draw_bars(
    axes: Axes,
    bars: Sequence[_Bar],
    heights: Sequence[float],
    colour: str | list[str],
    floor: Sequence[float] | float = 0.0,
    label: str = "",
) -> None:
    x, widths = [bar.x for bar in bars], [min(bar.width, _WIDEST) - 0.2 for bar in bars]
    axes.bar(x, heights, widths, floor, color=colour, label=label or None, zorder=3)


def _sections(
    axes: Axes, bars: Sequence[_Bar], limits: tuple[float, float], titles: bool = True, numbers: bool = True
) -> None:
    """A stripe behind each section, its title, and the numbers of its blocks."""
    ticks: list[tuple[float, str]] = []
    for section, group in itertools.groupby(bars, key=lambda bar: bar.section):
        inside = list(group)
        left, right = inside[0].x - inside[0].width / 2, inside[-1].x + inside[-1].width / 2
        axes.axvspan(left, right, color=_STRIPE, zorder=0, linewidth=0)
        for line, words in enumerate(section.split(", ") if titles else ()):
            axes.annotate(words, ((left + right) / 2, 1), (0, -17 - 16 * line), color=_INK, fontsize=12, ha="center",
                          xycoords=axes.get_xaxis_transform(), textcoords="offset points", zorder=4)  # fmt: skip
        if len(inside) > 1:
            step = next((n for n in (1, 2, 5) if n * inside[0].width / bars[-1].x > _APART), 10)
            ticks += [(bar.x, str(bar.index)) for bar in inside[::step]]
    axes.set_xlim(bars[0].x - bars[0].width / 2 - 0.3, bars[-1].x + bars[-1].width / 2 + 0.3)
    axes.set_ylim(*limits)
    axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks] if numbers else [""] * len(ticks))
    axes.axhline(0, color=_FAINT, linewidth=1, zorder=4)


# kinds of layers, and ranks


def _by_kind(values: Energies) -> dict[str, frozenset[LayerPosition]]:
    """Layers of one kind and stream, in words."""
    groups: dict[str, set[LayerPosition]] = {}
    both = "both" if any(place.stream for place in values) else ""
    for place in values:
        groups.setdefault(", ".join(filter(None, (place.kind, place.stream or both))), set()).add(place)
    return {name: frozenset(places) for name, places in groups.items()}


def _energy_by_kind(axes: Axes, energies: Energies) -> None:
    whole = sum(energies.values())
    fractions = {
        name: _share(sum(energies[p] for p in group), whole) for name, group in _by_kind(energies).items()
    }
    rows = sorted(fractions.items(), key=lambda row: -row[1])[:_ROWS]
    _rows(axes, [(name, fraction, f"{100 * fraction:.0f} %", _colour_of(name)) for name, fraction in rows])
    axes.set_xlim(0, 1.32 * max(fraction for _, fraction in rows) or 1)


def _cosines_by_kind(axes: Axes, products: Energies, first: Energies, second: Energies) -> None:
    rows = []
    for name, group in _by_kind(products).items():
        cosine = _cosine(*(sum(values[p] for p in group) for values in (products, first, second)))
        rows.append((name, cosine, f"{cosine:.2f}", _OPPOSED if cosine < 0 else _ALIKE))
    _rows(axes, sorted(rows, key=lambda row: -row[1])[:_ROWS])
    axes.set_xlim(min(-0.02, 1.2 * min(row[1] for row in rows)), 1.3)


def _rows(axes: Axes, rows: Sequence[tuple[str, float, str, str]]) -> None:
    """Horizontal bars (name, value, text at the end, colour), the first on top."""
    places = range(len(rows), 0, -1)
    axes.barh(places, [row[1] for row in rows], 0.62, color=[row[3] for row in rows], zorder=3)
    for y, (_, value, text, _) in zip(places, rows, strict=True):
        axes.annotate(
            text,
            (max(value, 0), y),
            (7, 0),
            textcoords="offset points",
            color=_INK,
            fontsize=13,
            va="center_baseline",
        )
    axes.set_yticks(list(places), [row[0] for row in rows], color=_INK)
    axes.set_ylim(min(0, len(rows) - 4) + 0.4, len(rows) + 0.6)
    axes.set_xticks([])
    axes.grid(False)
    axes.axvline(0, color=_FAINT, linewidth=1, zorder=4)


def _colour_of(name: str) -> str:
    return _COLOURS[name.partition(",")[0]]


def _ranks(axes: Axes, loras: Mapping[str, LoRA], colours: Sequence[str]) -> None:
    """The fraction of the energy that every rank keeps, and the rank at which 90 and 99 % are reached."""
    longest = max(lora.rank for lora in loras.values())
    for (name, lora), colour in zip(loras.items(), colours, strict=True):
        kept = kept_by_rank(lora)
        ranks, fractions = [0, *range(1, len(kept) + 1)], [0.0, *kept.tolist()]
        axes.plot(ranks, fractions, color=colour, linewidth=3, zorder=3, label=name or None)
        if len(loras) == 1:
            axes.fill_between(ranks, fractions, color=colour, alpha=0.16, linewidth=0, zorder=2)
        marks = sorted({1 + int((kept < mark).sum()) for mark in _MARKS})
        marks = [rank for rank in marks if rank < len(kept)]
        axes.plot(
            marks,
            [fractions[r] for r in marks],
            "o",
            color=colour,
            markersize=9,
            markeredgecolor=_INK,
            zorder=5,
        )
        if len(loras) == 1:
            lines = "\n".join(f"rank {rank} keeps {_percent(fractions[rank])}" for rank in marks)
            axes.text(0.96, 0.1, lines, transform=axes.transAxes, color=_INK, fontsize=14, ha="right",
                      linespacing=1.5, zorder=6)  # fmt: skip
    axes.set_xlim(0, longest * 1.03)
    axes.set_ylim(0, 1.1)
    axes.set_yticks([0, 0.5, 0.9], ["0", "50 %", "90 %"])
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("rank", color=_FAINT, fontsize=13)
    if len(loras) > 1:
        _legend(axes, inside=True)


# matplotlib


def _figure(size: tuple[int, int]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise I2LError(
            f"drawing a LoRA needs matplotlib, which cannot be imported ({error}); install the requirements.txt of "
            "ComfyUI-i2L and start ComfyUI again"
        ) from error
    width, height = size
    return Figure((_INCHES, _INCHES * height / width), dpi=width / _INCHES, facecolor=_BACK)


def _header(figure: Figure, title: str, about: str) -> None:
    figure.text(0.07, 0.955, title, color=_INK, fontsize=27, fontweight="bold", va="center")
    figure.text(0.07, 0.902, about, color=_FAINT, fontsize=15, va="center")


def _panel(figure: Figure, place: tuple[float, float, float, float], title: str) -> Axes:
    """Axes at (left, bottom, width, height) of the figure."""
    axes = figure.add_axes(place, facecolor=_PANEL)
    axes.set_title(title, color=_FAINT, fontsize=14, loc="left", pad=8)
    axes.tick_params(colors=_FAINT, labelsize=12, length=0, pad=6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(axis="y", color=_GRID, linewidth=0.8, zorder=1)
    axes.locator_params(axis="y", nbins=5)
    return axes


def _legend(axes: Axes, inside: bool = False) -> None:
    """In the line of the panel's title, at its right end; or inside the panel, at the bottom right."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(0.98, 0.06) if inside else (1.0, 0.985),
        ncols=1 if inside else len(KINDS),
        frameon=False,
        fontsize=13,
        labelcolor=_INK,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.4,
        handletextpad=0.5,
        borderaxespad=0,
    )


def _pixels(figure: Figure) -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    rgba = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    return rgba.view(height, width, 4)[..., :3].float() / 255
