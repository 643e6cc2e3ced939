"""The command: read what there is, one set of weights after the other, picture by picture; then the table."""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...i2l_core.checks import listed
from ...i2l_core.errors import I2LError
from ...i2l_core.train.data.data_set import open_rgb
from .overall import harmonic, overall, telling
from .rows import Material, read_material
from .sources import FIDELITY, SOURCES, TABLE, Judge, Plan, load, plan

_ABOUT = """The paper's Table 1 on your pictures: CLIP-Text, CLIP-Style, Aesthetic, PickScore, ImageReward, HPSv2,
HPSv3 and their normalised overall, and the SVD paper's S_txt, S_img and harmonic mean. Files: docs/paper_table1.md."""

_EVERY = 100  # pictures between two words of progress


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    try:
        named = {name: p for name in SOURCES if (p := getattr(options, name.replace("-", "_"))) is not None}
        measured = plan(options.metrics, options.weights, named)
        material = read_material(options.pictures, options.prompts, options.styles)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        result = measure(material, measured, device, _silent if options.json else _say)
    except I2LError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if not options.json:
        print(table(result["methods"]), end="\n\n")
    print(json.dumps(result))
    return 0


def measure(
    material: Material, measured: Plan, device: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    """The result as it is printed. Raises I2LError for a picture that cannot be read and a score that is no number."""
    _check_styles(material, measured.figures)
    for figure, why in measured.left_out.items():
        say(f"{figure} is left out: {why}")
    scores: dict[str, dict[str, float]] = {method: {} for method in material.pictures}
    cut: dict[str, int] = {}
    for name, (folder, figures) in measured.sources.items():
        judge = load(name, folder, figures, device)
        for method, found in _means(material, judge, name, say).items():
            scores[method] |= found
        if judge.cut:
            cut[name] = judge.cut
            say(f"{name} reads only the start of {judge.cut} texts, which are longer than its text encoder")
        del judge  # before the next one is loaded
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    columns = [figure for figure in TABLE if figure in measured.figures]
    totals = overall(scores, columns)
    rows = {}
    for method, row in scores.items():
        rows[method] = {figure: row[figure] for figure in columns}
        if totals is not None:
            rows[method]["overall"] = totals[method]
        rows[method] |= {figure: row[figure] for figure in FIDELITY if figure in row}
        if set(FIDELITY) <= row.keys():
            rows[method]["harmonic"] = harmonic(row["s_txt"], row["s_img"])
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "prompts": len(material.samples),
        "methods": {m: {k: round(value, 4) for k, value in row.items()} for m, row in rows.items()},
        "overall_of": telling(scores, columns) if totals is not None else [],
        "left_out": dict(measured.left_out),
        "texts_cut": cut,
        "weights": {name: str(folder) for name, (folder, _) in measured.sources.items()},
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown; the best of each column bold and the second best in italics, as far as there are others."""
    columns = list(next(iter(rows.values())))
    ranks = {c: sorted({row[c] for row in rows.values()}, reverse=True) for c in columns}

    def cell(column: str, value: float) -> str:
        rank, marks = ranks[column].index(value), ("**", "_")
        mark = marks[rank] if rank < min(2, len(ranks[column]) - 1) else ""
        return f"{mark}{value:.4f}{mark}"

    lines = [["method", *columns], ["---"] * (len(columns) + 1)]
    lines += [[method, *(cell(c, row[c]) for c in columns)] for method, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _means(
    material: Material, judge: Judge, name: str, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Method -> figure -> mean over the pictures."""
    count, done = len(material.samples) * len(material.pictures), 0
    means = {}
    for method, paths in material.pictures.items():
        found: dict[str, list[float]] = {}
        for sample, path in zip(material.samples, paths, strict=True):
            picture = open_rgb(path, str(path))
            for figure, score in judge(picture, sample).items():
                if not math.isfinite(score):
                    raise I2LError(f"{path}: {figure} gives {score}; its weights are broken, get them again")
                found.setdefault(figure, []).append(score)
            done += 1
            if done % _EVERY == 0 or done == count:
                say(f"{name}: {done} of {count} pictures")
        means[method] = {figure: statistics.fmean(values) for figure, values in found.items()}
    return means


def _check_styles(material: Material, figures: Sequence[str]) -> None:
    """Raises I2LError naming styles that lack what a figure is measured with."""
    styles = {sample.style.name: sample.style for sample in material.samples}
    for figure, entry in (("clip_style", "description"), ("s_img", "references")):
        if figure in figures and (bare := [n for n, s in styles.items() if not getattr(s, entry)]):
            raise I2LError(
                f"{len(bare)} of {len(styles)} styles have no {entry}, which {figure} needs: {listed(bare)}. "
                "Add to their rows, or leave the metric out with --metrics"
            )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.paper_table1", description=_ABOUT)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder with one folder per method")
    parser.add_argument("--prompts", type=Path, required=True, help=".jsonl: picture, prompt, style")
    parser.add_argument("--styles", type=Path, required=True, help=".jsonl: style, description, references")
    parser.add_argument("--metrics", nargs="+", help=f"only these of {', '.join((*TABLE, *FIDELITY))}")
    parser.add_argument("--weights", type=Path, help="a folder with one folder of weights per metric")
    for name, source in SOURCES.items():
        text = f"the folder for {', '.join(source.figures)} ({source.get})"
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=text)
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _silent(text: str) -> None:
    del text
