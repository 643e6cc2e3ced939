"""The study's plots, from its JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from i2l_core.demo.content import PARTS

from . import results

PICTURES = Path("docs/images")
_INK, _STYLE, _PROMPT, _OTHER = "#333333", "#c2410c", "#1d4ed8", "#9ca3af"
_SIDES = {"style": _OTHER, "none": _PROMPT, "gray": _STYLE, "wrong style": _INK}
_AT_CFG = "4"  # where the factors are shown apart


def draw(folder: Path, out: Path = PICTURES) -> list[Path]:
    """Draw what has been measured; parts that are missing are left out. The paths of the pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plots = {
        "fidelity": _fidelity,
        "trained": _trained,
        "leakage": _leakage,
        "guidance": _guidance,
        "curves": _curves,
        "learned": _learned,
        "infinity": _infinity,
    }
    drawn = []
    out.mkdir(parents=True, exist_ok=True)
    for name, data in results.read(folder, plots):
        figure = plots[name](data)
        target = out / f"study_{name}.png"
        figure.savefig(target, dpi=110, bbox_inches="tight")
        pyplot.close(figure)
        drawn.append(target)
    return drawn


def _fidelity(data: dict[str, Any]) -> Any:
    """A row for each condition: its distance and its accuracy, with intervals."""
    cases = data["cases"]
    figure, axes = _row(2, (9, 0.32 * len(cases) + 0.8), sharey=True)
    colours = [_colour(name) for name in cases]
    for axis, key, factor in zip(axes, ("style_distance", "prompt_accuracy"), (1, 100), strict=True):
        for y, (case, colour) in enumerate(zip(cases.values(), colours, strict=True)):
            low, high = (factor * v for v in case[f"{key}_interval_95"])
            axis.plot([low, high], [y, y], color=colour, lw=2, alpha=0.5)
            axis.plot([factor * case[key]], [y], "o", ms=6, color=colour)
    axes[0].set_yticks(range(len(cases)), list(cases))
    axes[0].invert_yaxis()
    axes[0].set_xlim(left=0)
    _tidy(axes[0], "Style distance (0: the same style)", "")
    _tidy(axes[1], "Prompt accuracy, %", "")
    return figure


def _colour(name: str) -> str:
    return _STYLE if name.startswith("predicted") else _PROMPT if name.startswith("adapter") else _OTHER


def _trained(data: dict[str, Any]) -> Any:
    """Time to a LoRA against what it reaches."""
    figure, (axis,) = _row(1, (6.5, 3.6))
    cases = data["cases"]
    points = [(c["seconds_per_style"], c["style_distance"]) for c in cases.values()]
    xs = [x for x, _ in points]
    axis.axhline(data["none"]["style_distance"], color=_OTHER, ls=":", lw=1)
    axis.text(max(xs), data["none"]["style_distance"], "no LoRA", ha="right", va="bottom", fontsize=8)
    for kind, colour in (("trained", _INK), ("predicted", _STYLE)):
        line = [point for name, point in zip(cases, points, strict=True) if name.startswith(kind)]
        axis.plot(*zip(*line, strict=True), color=colour, lw=1, marker="o", ms=6)
    for i, (name, point) in enumerate(zip(cases, points, strict=True)):
        offset = (5, -14 if i == 1 else 7)  # the two predicted ones lie close together
        axis.annotate(name, point, textcoords="offset points", xytext=offset, fontsize=8, color=_INK)
    axis.set_xscale("log")
    axis.set_xlim(right=10 * max(xs))
    axis.set_ylim(bottom=0)
    _tidy(axis, "Seconds for one style", "Style distance")
    return figure


def _leakage(data: dict[str, Any]) -> Any:
    """How much more often than by chance a picture shows the reference's word; grey: where chance itself lies."""
    figure, axes = _row(2, (9, 3.2), sharey=True)
    makers = data["makers"]
    colours = dict(zip(makers, (_STYLE, _INK, _PROMPT), strict=False))
    for axis, title in zip(axes, ("prompt", "no prompt"), strict=True):
        for m, (name, found) in enumerate(makers.items()):
            for p, part in enumerate(PARTS):
                x, leak = p + 0.2 * (m - (len(makers) - 1) / 2), found[title][part]
                axis.plot([x, x], leak["spread_of_chance_95"], color="#d1d5db", lw=8, zorder=1)
                label = name if p == 0 else None
                axis.plot([x], [leak["above_chance"]], "o", ms=6, color=colours[name], label=label, zorder=2)
        axis.axhline(0, color=_INK, lw=0.8)
        axis.set_xticks(range(len(PARTS)), PARTS)
        _tidy(axis, f"sampled with {'a prompt for something else' if title == 'prompt' else 'no prompt'}", "")
    axes[0].set_ylabel("Points above chance")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, loc="outside upper left", ncols=len(makers))
    return figure


def _guidance(data: dict[str, Any]) -> Any:
    figure, axes = _row(3, (13, 3.4))
    for axis, key, factor in zip(axes, ("style_distance", "prompt_accuracy"), (1, 100), strict=False):
        for negative, colour in _SIDES.items():
            points = [(float(c), factor * s[negative][key]) for c, s in data["cfg"].items() if negative in s]
            axis.plot(
                *zip(*points, strict=True), marker="o", ms=4, color=colour, label=f"negative: {negative}"
            )
        _tidy(axis, "cfg", "Style distance" if factor == 1 else "Prompt accuracy, %")
    _legend(axes[0])
    changes = data["cfg"][_AT_CFG]["gray"]["change_by_factor"]
    for y, change in enumerate(changes.values()):
        axes[2].plot(change["interval_95"], [y, y], color=_STYLE, lw=2, alpha=0.5)
        axes[2].plot([change["mean"]], [y], "o", ms=6, color=_STYLE)
    axes[2].axvline(0, color=_INK, lw=0.8)
    axes[2].set_yticks(range(len(changes)), list(changes))
    axes[2].invert_yaxis()
    _tidy(axes[2], f"Change of distance by gray, cfg {_AT_CFG}", "")
    return figure


def _curves(data: dict[str, Any]) -> Any:
    titles = {
        "strength": "strength",
        "rank": "rank",
        "spectral": "spectral decay alpha",
        "way": "t, from A to B",
    }
    figure, axes = _row(len(titles), (13, 3.2), sharey=True)
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        xs = [float(x) for x in data[name]]
        rows = list(data[name].values())
        key = "to_a" if name == "way" else "style_distance"
        label = "distance to A" if name == "way" else "style distance"
        axis.plot(xs, [row[key] for row in rows], marker="o", ms=3, color=_STYLE, label=label)
        if name == "way":
            axis.plot(xs, [row["to_b"] for row in rows], marker="o", ms=3, color=_INK, label="to B")
        axis.plot(
            xs, [1 - row["prompt_accuracy"] for row in rows], color=_PROMPT, ls="--", label="prompt errors"
        )
        axis.set_ylim(bottom=0)
        _tidy(axis, title, "")
    axes[1].set_xticks([float(x) for x in data["rank"]])
    _legend(axes[0])
    _legend(axes[-1])
    return figure


def _learned(data: dict[str, Any]) -> Any:
    figure, (axis,) = _row(1, (4.8, 3.6))
    rows = data["between"]
    xs = [float(t) for t in rows]
    for key, colour in (("share_of_the_way", _STYLE), ("off_the_line", _OTHER)):
        values = [row[key] for row in rows.values()]
        axis.fill_between(
            xs, [v["p10"] for v in values], [v["p90"] for v in values], color=colour, alpha=0.15
        )
        axis.plot(
            xs, [v["median"] for v in values], marker="o", ms=4, color=colour, label=key.replace("_", " ")
        )
    axis.plot([0, 1], [0, 1], color=_INK, lw=0.8, ls=":")
    _legend(axis)
    _tidy(axis, "Style between A and B", "Of the way from A's LoRA to B's")
    return figure


def _infinity(data: dict[str, Any]) -> Any:
    """What comes over against what is kept; then along alpha, components and scales."""
    figure, axes = _row(4, (14, 3.4))
    cases = {k: c for k, c in data["ablation"]["content"].items() if "by_factor" in c}
    for (name, case), colour in zip(cases.items(), (_OTHER, _INK, _PROMPT, _STYLE), strict=True):
        axes[0].plot([case["style_distance"]], [100 * case["agreement"]], "o", ms=8, color=colour, label=name)
    _legend(axes[0])
    _tidy(axes[0], "Style distance", "Content as unstyled, %")
    titles = {"alpha": "alpha", "top_k": "components", "step": "blended after scale"}
    for axis, (key, title) in zip(axes[1:], titles.items(), strict=True):
        xs, rows = [float(x) for x in data[key]], list(data[key].values())
        axis.plot(
            xs,
            [row["style_distance"] for row in rows],
            marker="o",
            ms=4,
            color=_STYLE,
            label="style distance",
        )
        axis.plot(
            xs, [1 - row["agreement"] for row in rows], "--", color=_PROMPT, label="content not as unstyled"
        )
        axis.set_ylim(bottom=0)
        if key != "step":
            axis.set_xscale("log", base=2)
            axis.set_xticks(xs, [f"{x:g}" for x in xs])
        _tidy(axis, title, "")
    _legend(axes[1])
    return figure


def _row(count: int, size: tuple[float, float], sharey: bool = False) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=size, sharey=sharey, squeeze=False, layout="constrained")
    return figure, axes[0]


def _legend(axis: Any) -> None:
    """Above the axis, where no curve is."""
    axis.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2
    )


def _tidy(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x)
    if y:
        axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.6)
