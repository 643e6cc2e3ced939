"""Where each figure's weights are, and where to get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...i2l_core.errors import I2LError
from .clip import Clip, ClipJudge
from .published import PublishedJudge, load_published

TABLE = ("clip_text", "clip_style", "aesthetic", "pickscore", "image_reward", "hpsv2", "hpsv3")
FIDELITY = ("s_txt", "s_img")  # of the SVD paper

Judge = ClipJudge | PublishedJudge

_METRICS = "modelscope.cn/models/DiffSynth-Studio/ImageMetrics"
_CLIP_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Source:
    """One folder of weights. `folder`: its name inside --weights, the one it has in DiffSynth's ImageMetrics."""

    folder: str
    figures: tuple[str, ...]
    needs: tuple[str, ...]
    get: str


def _published(folder: str, figure: str) -> Source:
    return Source(folder, (figure,), ("model.safetensors",), f"{_METRICS}, folder {folder}")


# in the order in which they run: every picture is opened by the quickest first, so a broken one is found early
SOURCES = {
    "clip": Source(
        "CLIP-ViT-H-14-laion2B-s32B-b79K",
        ("clip_text", "clip_style", *FIDELITY),
        _CLIP_FILES,
        "huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ),
    "pickscore": Source(
        "PickScore", ("pickscore",), _CLIP_FILES, "huggingface.co/yuvalkirstain/PickScore_v1"
    ),
    "aesthetic": _published("Aesthetic", "aesthetic"),
    "image-reward": _published("ImageReward", "image_reward"),
    "hpsv2": _published("HPSv2", "hpsv2"),
    "hpsv3": _published("HPSv3", "hpsv3"),
}


@dataclass(frozen=True)
class Plan:
    """`left_out`: figure -> why and what to do."""

    sources: Mapping[str, tuple[Path, tuple[str, ...]]]  # source -> (its folder, the figures it makes)
    left_out: Mapping[str, str]

    @property
    def figures(self) -> tuple[str, ...]:
        made = {f for _, figures in self.sources.values() for f in figures}
        return tuple(f for f in (*TABLE, *FIDELITY) if f in made)


def plan(wanted: Sequence[str] | None, weights: Path | None, named: Mapping[str, Path]) -> Plan:
    """Which figures can be measured.

    wanted: None for all whose files are there; otherwise it is an error when the files of one are not.
    weights: a folder of the sources' folders. named: source -> its folder, before `weights`.
    Raises I2LError naming the metric or the missing file, and where to get it.
    """
    for name in wanted or ():
        if name not in (*TABLE, *FIDELITY):
            raise I2LError(f"there is no metric {name}; there are {', '.join((*TABLE, *FIDELITY))}")
    if weights is not None and not weights.is_dir():
        raise I2LError(f"--weights: {weights} is not a folder; it holds {_folders()}")
    sources: dict[str, tuple[Path, tuple[str, ...]]] = {}
    left_out: dict[str, str] = {}
    for name, source in SOURCES.items():
        figures = tuple(f for f in source.figures if wanted is None or f in wanted)
        if not figures:
            continue
        folder = named.get(name)
        if folder is None and weights is not None and (weights / source.folder).is_dir():
            folder = weights / source.folder
        if folder is None:
            why = f"no files: give --{name} FOLDER, or --weights with {source.folder} in it ({source.get})"
            if wanted is not None:
                raise I2LError(f"{figures[0]} has {why}")
            left_out |= dict.fromkeys(figures, why)
            continue
        for file in source.needs:
            if not (folder / file).is_file():
                raise I2LError(
                    f"{folder / file} is missing, which {figures[0]} needs: get it from {source.get}"
                )
        sources[name] = folder, figures
    if not sources:
        raise I2LError(
            f"there are no weights to measure with: give --weights FOLDER, which holds {_folders()}"
        )
    return Plan(sources, left_out)


def load(name: str, folder: Path, figures: Sequence[str], device: torch.device) -> Judge:
    if SOURCES[name].needs == _CLIP_FILES:
        return ClipJudge(Clip(folder, device), figures)
    return load_published(figures[0], folder, device)


def _folders() -> str:
    return "one or more of " + ", ".join(source.folder for source in SOURCES.values())
