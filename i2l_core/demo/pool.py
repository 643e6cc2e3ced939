"""A pool of rendered pictures on disk: many styles, each with several contents. All training reads from pools."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .content import Content, contents, distance_field
from .render import SIZE, paint
from .style import Style, sample_style

POOL_FOLDER = Path(".runs/pool")  # where rendered pools are kept, from the repository's root

_CHUNK = 64  # styles a worker renders before it reports


@dataclass(frozen=True)
class PoolConfig:
    styles: int
    per_style: int  # pictures of each style, all of different content
    seed: int
    held_out: bool | None  # which side of the style split, and of the content split; None: both sides

    def __post_init__(self) -> None:
        if not 1 <= self.per_style <= len(contents(self.held_out)):
            raise ValueError(f"per_style: expected 1..{len(contents(self.held_out))}, got {self.per_style}")


@dataclass(frozen=True)
class Pool:
    """`pictures` (styles, per_style, SIZE, SIZE, 3) uint8 and `masks` (styles, per_style, SIZE / 2, SIZE / 2) uint8,
    the fraction of each 2x2 pixels that figures cover, 0..255; both memory-mapped. Contents and styles beside them."""

    pictures: np.ndarray
    masks: np.ndarray
    styles: tuple[Style, ...]
    contents: tuple[tuple[Content, ...], ...]


def open_pool(folder: Path, config: PoolConfig, workers: int = 2, progress=lambda done, total: None) -> Pool:
    """Render the pool, or open the one that the same config has rendered before."""
    folder.mkdir(parents=True, exist_ok=True)
    side = {False: "train", True: "test", None: "all"}[config.held_out]
    stem = f"{side}-{config.styles}x{config.per_style}-{config.seed}"
    pictures_path, masks_path, facts_path = (
        folder / f"{stem}{end}" for end in (".npy", "-masks.npy", ".json")
    )
    if not facts_path.exists():
        shape = (config.styles, config.per_style, SIZE, SIZE, 3)
        pictures = np.lib.format.open_memmap(pictures_path, mode="w+", dtype=np.uint8, shape=shape)
        half = (*shape[:2], SIZE // 2, SIZE // 2)
        masks = np.lib.format.open_memmap(masks_path, mode="w+", dtype=np.uint8, shape=half)
        facts = []
        starts = range(0, config.styles, _CHUNK)
        with ProcessPoolExecutor(workers) as executor:
            for start, (block, covers, rows) in zip(
                starts, executor.map(_render_chunk, [config] * len(starts), starts), strict=True
            ):
                pictures[start : start + len(block)] = block
                masks[start : start + len(block)] = covers
                facts += rows
                progress(min(start + _CHUNK, config.styles), config.styles)
        pictures.flush()
        masks.flush()
        # written last: its presence says that the pool is whole
        facts_path.write_text(json.dumps(facts), "utf-8")
    facts = json.loads(facts_path.read_text("utf-8"))
    return Pool(
        np.load(pictures_path, mmap_mode="r"),
        np.load(masks_path, mmap_mode="r"),
        tuple(Style(*style) for style, _ in facts),
        tuple(tuple(Content(*c) for c in row) for _, row in facts),
    )


def _render_chunk(config: PoolConfig, start: int) -> tuple[np.ndarray, np.ndarray, list]:
    pictures, masks, facts = [], [], []
    choices = contents(config.held_out)
    for index in range(start, min(start + _CHUNK, config.styles)):
        rng = np.random.default_rng([config.seed, index])
        style = sample_style(rng, config.held_out)
        row = [choices[i] for i in rng.permutation(len(choices))[: config.per_style]]
        for content in row:
            field = distance_field(content, SIZE, rng)
            pictures.append(paint(field, style, rng))
            cover = np.clip(0.5 - field * (SIZE / 2), 0, 1)
            masks.append(cover.reshape(SIZE // 2, 2, SIZE // 2, 2).mean((1, 3)))
        facts.append([style.as_tuple(), [[c.subject, c.count, c.place] for c in row]])
    shape = (len(facts), config.per_style)
    return _bytes(pictures, shape), _bytes(masks, shape), facts


def _bytes(parts: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    whole = np.round(np.stack(parts) * 255).astype(np.uint8)
    return whole.reshape(*shape, *whole.shape[1:])
