"""All figures of the study as Markdown, from its JSON files: docs/study/tables.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from i2l_core.demo.content import PARTS

from . import results

NAME = "tables.md"
_INTRO = """# The study in tables

Written by `python -m bench.study plots` from the JSON files beside it; what it means is in
[evidence.md](../evidence.md). Style distance: 0 is the same style. Brackets: 95 % intervals, by bootstrap over styles.
"""


def write(folder: Path) -> Path:
    """Tables of what has been measured; parts that are missing are left out."""
    sections = [_INTRO]
    for name, data in results.read(folder, _SECTIONS):
        sections.append(f"## {name.capitalize()}\n\n{_about(data)}\n\n{_SECTIONS[name](data)}")
    target = folder / NAME
    target.write_text("\n".join(sections), "utf-8")
    return target


def _about(data: dict[str, Any]) -> str:
    return (
        f"{data['styles']} held-out styles, {data['prompts']} prompt{'s' * (data['prompts'] > 1)} each, "
        f"{data['steps']} steps, {data['machine']}, {data['seconds']:.0f} s."
    )


def _fidelity(data: dict[str, Any]) -> str:
    none = data["cases"]["none"]["style_distance"]
    return _table(
        ("", "style distance", "below none", "prompt accuracy", "change from none, points"),
        (
            (
                name,
                f"{case['style_distance']:.3f} {_interval(case['style_distance_interval_95'], 1, 3)}",
                f"{100 * (1 - case['style_distance'] / none):.0f} %",
                f"{100 * case['prompt_accuracy']:.1f} % {_interval(case['prompt_accuracy_interval_95'], 100, 1)}",
                _change(case["prompt_accuracy_change"], 100, 1),
            )
            for name, case in data["cases"].items()
        ),
    )


def _trained(data: dict[str, Any]) -> str:
    rows = [("no LoRA", f"{data['none']['style_distance']:.3f}", _percent(data["none"]), "")]
    rows += [
        (name, f"{case['style_distance']:.3f}", _percent(case), f"{case['seconds_per_style']:.3g}")
        for name, case in data["cases"].items()
    ]
    whole = _table(("", "style distance", "prompt accuracy", "seconds a style"), rows)
    against = _table(
        ("", "", "of the trained one's gain", "times faster"),
        (
            (name, trained, f"{100 * ratio['gain']:.0f} %", str(ratio["times_faster"]))
            for trained, ratios in data["predicted_over_trained"].items()
            for name, ratio in ratios.items()
        ),
    )
    return f"{whole}\n{against}"


def _cost(data: dict[str, Any]) -> str:
    return _table(
        ("picture, pixels a side", "seconds of a step", "of predicting", "predictions in 500 steps"),
        (
            (side, f"{row['step']:.3g}", f"{data['predicting']:.3g}", str(row["predictions_in_500_steps"]))
            for side, row in data["pixels"].items()
        ),
    )


def _leakage(data: dict[str, Any]) -> str:
    return _table(
        ("", "sampled with", "part", "shown, %", "by chance, %", "above chance, points", "spread of chance"),
        (
            (
                maker,
                title,
                part,
                f"{leak['shown']:.1f}",
                f"{leak['chance']:.1f}",
                f"{leak['above_chance']:+.1f}",
                _interval(leak["spread_of_chance_95"], 1, 1),
            )
            for maker, found in data["makers"].items()
            for title, leaks in found.items()
            for part, leak in ((part, leaks[part]) for part in PARTS)
        ),
    )


def _guidance(data: dict[str, Any]) -> str:
    whole = _table(
        ("cfg", "negative side", "style distance", "change", "prompt accuracy", "change, points"),
        (
            (
                cfg,
                name,
                f"{case['style_distance']:.3f}",
                _change(case["style_distance_change"], 1, 3),
                _percent(case),
                _change(case["prompt_accuracy_change"], 100, 1),
            )
            for cfg, sides in data["cfg"].items()
            for name, case in sides.items()
        ),
    )
    factors = list(data["cfg"]["1"]["style"]["change_by_factor"])
    parted = _table(
        ("cfg", *factors),
        (
            (cfg, *(_change(sides["gray"]["change_by_factor"][f], 1, 3) for f in factors))
            for cfg, sides in data["cfg"].items()
            if "gray" in sides
        ),
    )
    return f"{whole}\nChange of the distance in each factor, gray on the negative side:\n\n{parted}"


def _curves(data: dict[str, Any]) -> str:
    knobs = [
        _table(
            (title, "style distance", "prompt accuracy"),
            ((x, f"{case['style_distance']:.3f}", _percent(case)) for x, case in data[name].items()),
        )
        for name, title in (("strength", "strength"), ("rank", "rank"), ("spectral", "spectral decay alpha"))
    ]
    way = _table(
        ("from A to B", "distance to A", "distance to B", "share of B", "prompt accuracy"),
        (
            (t, f"{c['to_a']:.3f}", f"{c['to_b']:.3f}", f"{c['share_of_b']:.2f}", _percent(c))
            for t, c in data["way"].items()
        ),
    )
    return "\n".join([*knobs, way])


def _learned(data: dict[str, Any]) -> str:
    alike = data["alike"]
    cosines = _table(
        ("cosine of two LoRAs", "10 %", "median", "90 %"),
        (
            (title, *_spread(alike[key]))
            for title, key in (
                ("of one style, from other pictures", "same_style"),
                ("of two styles", "other_style"),
            )
        ),
    )
    between = _table(
        (
            "style between A and B",
            "of the way, 10 %",
            "median",
            "90 %",
            "off the line, 10 %",
            "median",
            "90 %",
        ),
        (
            (t, *_spread(row["share_of_the_way"]), *_spread(row["off_the_line"]))
            for t, row in data["between"].items()
        ),
    )
    nearest = 100 * alike["nearest_is_the_same_style"]
    return f"{cosines}\nThe nearest LoRA is that of the same style in {nearest:.1f} % of the styles.\n\n{between}"


def _composition(data: dict[str, Any]) -> str:
    def kept(rows: dict[str, Any], title: str) -> str:
        return _table(
            (title, "style distance", "content as it should be"),
            (
                (name, f"{case['style_distance']:.3f}", f"{100 * case['content_kept']:.1f} %")
                for name, case in rows.items()
            ),
        )

    inpaint = _table(
        ("inpainting", "change"),
        ((name.replace("_", " "), f"{value:.2g}") for name, value in data["inpaint"].items()),
    )
    control = [kept(data["control"], "structure control")] if "control" in data else []
    return "\n".join([kept(data["img2img"], "img2img, denoise"), inpaint, *control])


def _tone(data: dict[str, Any]) -> str:
    return _ways(data["lora"], "LoRA at")


def _ways(groups: dict[str, Any], title: str) -> str:
    """Style distance and prompts all right of each way, with their changes, and the distance in each factor."""
    factors = list(next(iter(next(iter(groups.values())).values()))["by_factor"])
    return _table(
        (title, "", "style distance", "change", "all right", "change, points", *factors),
        (
            (
                group,
                name,
                f"{case['style_distance']:.3f} {_interval(case['style_distance_interval_95'], 1, 3)}",
                _change(case["style_distance_change"], 1, 3),
                f"{100 * case['all_right']:.1f} % {_interval(case['all_right_interval_95'], 100, 1)}",
                _change(case["all_right_change"], 100, 1),
                *(f"{case['by_factor'][factor]:.2f}" for factor in factors),
            )
            for group, cases in groups.items()
            for name, case in cases.items()
        ),
    )


def _structure(data: dict[str, Any]) -> str:
    def change(case: dict[str, Any], name: str, factor: float, digits: int) -> str:
        return _change(case[name], factor, digits) if name in case else ""

    whole = _table(
        (
            "",
            "style distance",
            "all right",
            "outlines as unstyled",
            "content as unstyled",
            "nearest free rival",
            "style distance over it",
            "all right, points",
            "outlines",
            "beaten by",
        ),
        (
            (
                name,
                f"{case['style_distance']:.3f} {_interval(case['style_distance_interval_95'], 1, 3)}",
                f"{100 * case['all_right']:.1f} % {_interval(case['all_right_interval_95'], 100, 1)}",
                f"{case['outline']:.3f} {_interval(case['outline_interval_95'], 1, 3)}",
                f"{100 * case['content_as_unstyled']:.1f} %",
                case.get("rival", ""),
                change(case, "style_distance_change", 1, 3),
                change(case, "all_right_change", 100, 1),
                change(case, "outline_change", 1, 3),
                "; ".join(case.get("beaten_by", ())[:2]),
            )
            for name, case in data["cases"].items()
        ),
    )
    return f"{whole}\nOutlines of another picture agree by {data['outline_of_another_picture']:.3f}.\n"


def _infinity(data: dict[str, Any]) -> str:
    parts = []
    for title, found in data["ablation"].items():
        cases = {name: case for name, case in found.items() if "by_factor" in case}
        parts.append(f"Prompt: {title}.\n\n{_styled(cases)}")
    anchors = {f"diffusion, {name}": case for name, case in data["anchors"].items()}
    rows = ((name, f"{c['style_distance']:.3f}", _percent(c)) for name, c in anchors.items())
    parts.append(_table(("on the same styles", "style distance", "prompt accuracy"), rows))
    for name in ("alpha", "strength", "top_k", "step", "ours"):
        cases = {key: case for key, case in data[name].items() if "by_factor" in case}
        parts.append(_styled(cases, name.replace("_", " ")))
    scales = list(data["key_step"]["subject"])
    shares = (
        (kind, *(f"{100 * row[scale]:.0f}" for scale in scales)) for kind, row in data["key_step"].items()
    )
    parts.append(_table(("the other prompt at scale (0: nowhere), % with its", *scales), shares))
    shares = (
        (name, f"{100 * row['subject']:.0f}", f"{100 * row['hue']:.0f}")
        for name, row in data["key_feature"].items()
    )
    parts.append(_table(("of the other prompt is blended in", "its subject, %", "its hue, %"), shares))
    rows = (
        (name, f"{row['distance_within_a_set']:.3f}", _percent(row)) for name, row in data["words"].items()
    )
    parts.append(_table(("a style from words", "distance within a set", "prompt accuracy"), rows))
    return "\n".join(parts)


def _styled(cases: dict[str, Any], title: str = "") -> str:
    return _table(
        (title, "style distance", "change", "prompt accuracy", "change, points", "as unstyled", "outline"),
        (
            (
                name,
                f"{case['style_distance']:.3f}",
                _change(case["change"]["style_distance"], 1, 3),
                _percent(case),
                _change(case["change"]["prompt_accuracy"], 100, 1),
                f"{100 * case['agreement']:.0f} %",
                f"{case['outline']:.2f}",
            )
            for name, case in cases.items()
        ),
    )


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "fidelity": _fidelity,
    "trained": _trained,
    "cost": _cost,
    "leakage": _leakage,
    "guidance": _guidance,
    "curves": _curves,
    "learned": _learned,
    "composition": _composition,
    "tone": _tone,
    "structure": _structure,
    "infinity": _infinity,
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(case: dict[str, Any]) -> str:
    return f"{100 * case['prompt_accuracy']:.1f} %"


def _interval(bounds: Sequence[float], factor: float, digits: int) -> str:
    return f"[{', '.join(f'{factor * bound:.{digits}f}' for bound in bounds)}]"


def _change(change: dict[str, Any], factor: float, digits: int) -> str:
    return f"{factor * change['mean']:+.{digits}f} {_interval(change['interval_95'], factor, digits)}"


def _spread(values: dict[str, float]) -> list[str]:
    return [f"{values[key]:.3f}" for key in ("p10", "median", "p90")]
