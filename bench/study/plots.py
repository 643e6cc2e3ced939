"""The study's plots, from its JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PICTURES = Path("docs/images")
_INK, _STYLE, _PROMPT, _OTHER = "#333333", "#c2410c", "#1d4ed8", "#9ca3af"


def draw(folder: Path, out: Path = PICTURES) -> list[Path]:
    """Draw what has been measured; parts that are missing are left out. The paths of the pictures."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = []
    for name, plot in {
        "fidelity": _fidelity,
        "guidance": _guidance,
        "curves": _curves,
        "learned": _learned,
    }.items():
        path = folder / f"{name}.json"
        if path.exists():
            figure = plot(json.loads(path.read_text("utf-8")))
            target = out / f"study_{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target, dpi=110, bbox_inches="tight")
            drawn.append(target)
    return drawn


def _fidelity(data: dict[str, Any]) -> Any:
    """Style distance against prompt accuracy, one point per condition."""
    figure, axis = _axes("Style distance (0: the same style)", "Prompt accuracy, %", size=(7.5, 5))
    for name, case in data["cases"].items():
        x, y = case["style_distance"], 100 * case["prompt_accuracy"]
        colour = _STYLE if name.startswith("predicted") else _PROMPT if "adapter" in name else _OTHER
        axis.scatter([x], [y], s=45, color=colour, zorder=3)
        axis.annotate(name, (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8, color=_INK)
    axis.set_title(f"{data['styles']} held-out styles", loc="left", fontsize=10)
    return figure


def _guidance(data: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    colours = {"style": _OTHER, "none": _PROMPT, "gray": _STYLE, "wrong style": _INK}
    for axis, key, factor in zip(axes, ("style_distance", "prompt_accuracy"), (1, 100), strict=True):
        for negative, colour in colours.items():
            points = [
                (float(c), factor * sides[negative][key])
                for c, sides in data["cfg"].items()
                if negative in sides
            ]
            axis.plot(
                *zip(*points, strict=True), marker="o", ms=4, color=colour, label=f"negative: {negative}"
            )
        _tidy(axis, "cfg", "Style distance" if factor == 1 else "Prompt accuracy, %")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _curves(data: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    titles = {
        "strength": "strength",
        "rank": "rank",
        "spectral": "spectral decay alpha",
        "way": "t, from A to B",
    }
    figure, axes = plt.subplots(1, len(titles), figsize=(13, 3.2))
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        xs = [float(x) for x in data[name]]
        rows = list(data[name].values())
        key = "to_a" if name == "way" else "style_distance"
        axis.plot(xs, [row[key] for row in rows], marker="o", ms=3, color=_STYLE, label="style distance")
        if name == "way":
            axis.plot(xs, [row["to_b"] for row in rows], marker="o", ms=3, color=_INK, label="distance to B")
        axis.plot(
            xs, [1 - row["prompt_accuracy"] for row in rows], color=_PROMPT, ls="--", label="prompt errors"
        )
        axis.set_ylim(bottom=0)
        _tidy(axis, title, "")
    axes[0].legend(frameon=False, fontsize=8)
    axes[-1].legend(frameon=False, fontsize=8)
    return figure


def _learned(data: dict[str, Any]) -> Any:
    figure, axis = _axes("Style between A and B", "Share of the way that the LoRA has gone", size=(4.6, 3.6))
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
    axis.legend(frameon=False, fontsize=8)
    return figure


def _axes(x: str, y: str, size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=size)
    _tidy(axis, x, y)
    return figure, axis


def _tidy(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.6)
