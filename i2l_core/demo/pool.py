"""A pool of rendered pictures on disk: many styles, several contents of each. Training reads nothing else."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .content import Content, contents
from .render import SIZE, render
from .style import Style, sample_style

_CHUNK = 64  # styles a worker renders before it reports


@dataclass(frozen=True)
class PoolConfig:
    styles: int
    per_style: int  # pictures of each style, all of different content
    seed: int
    held_out: bool  # which side of the style split, and of the content split

    def __post_init__(self) -> None:
        if not 1 <= self.per_style <= len(contents(self.held_out)):
            raise ValueError(f"per_style: expected 1..{len(contents(self.held_out))}, got {self.per_style}")


@dataclass(frozen=True)
class Pool:
    """`pictures` (styles, per_style, SIZE, SIZE, 3) uint8, memory-mapped; contents and styles beside it."""

    pictures: np.ndarray
    styles: tuple[Style, ...]
    contents: tuple[tuple[Content, ...], ...]


def open_pool(folder: Path, config: PoolConfig, workers: int = 2, progress=lambda done, total: None) -> Pool:
    """Render the pool, or open the one that the same config has rendered before."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{'test' if config.held_out else 'train'}-{config.styles}x{config.per_style}-{config.seed}"
    pictures_path, facts_path = folder / f"{stem}.npy", folder / f"{stem}.json"
    if not facts_path.exists():
        shape = (config.styles, config.per_style, SIZE, SIZE, 3)
        pictures = np.lib.format.open_memmap(pictures_path, mode="w+", dtype=np.uint8, shape=shape)
        facts = []
        starts = range(0, config.styles, _CHUNK)
        with ProcessPoolExecutor(workers) as executor:
            for start, (block, rows) in zip(
                starts, executor.map(_render_chunk, [config] * len(starts), starts), strict=True
            ):
                pictures[start : start + len(block)] = block
                facts += rows
                progress(min(start + _CHUNK, config.styles), config.styles)
        pictures.flush()
        facts_path.write_text(json.dumps(facts))  # written last: its presence says that the pool is whole
    facts = json.loads(facts_path.read_text())
    return Pool(
        np.load(pictures_path, mmap_mode="r"),
        tuple(Style(*style) for style, _ in facts),
        tuple(tuple(Content(*c) for c in row) for _, row in facts),
    )


def _render_chunk(config: PoolConfig, start: int) -> tuple[np.ndarray, list]:
    pictures, facts = [], []
    choices = contents(config.held_out)
    for index in range(start, min(start + _CHUNK, config.styles)):
        rng = np.random.default_rng([config.seed, index])
        style = sample_style(rng, config.held_out)
        row = [choices[i] for i in rng.permutation(len(choices))[: config.per_style]]
        pictures.append(np.stack([render(c, style, rng) for c in row]))
        facts.append([style.as_tuple(), [[c.subject, c.count, c.place] for c in row]])
    return np.round(np.stack(pictures) * 255).astype(np.uint8), facts
