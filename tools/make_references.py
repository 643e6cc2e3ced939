"""Draws the reference pictures that ship with the pack: `python -m tools.make_references`, from the root.

Held-out styles and held-out contents of the tiny world: nothing that was trained has seen them.
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from i2l_core.demo.content import contents
from i2l_core.demo.render import render
from i2l_core.demo.style import Style, sample_style

from .host import ROOT

REFERENCES = ROOT / "workflows" / "references"
PICTURES = 4
SEEDS = {"neon": 2, "glass": 8, "blueprint": 5}  # technique -> which held-out draw of it


def held_out_style(technique: str, seed: int) -> Style:
    """The first held-out style of a technique in the stream of a seed."""
    rng = np.random.default_rng(seed)
    while True:
        style = sample_style(rng, held_out=True)
        if style.name == technique:
            return style


def main() -> None:
    REFERENCES.mkdir(parents=True, exist_ok=True)
    choices = contents(held_out=True)
    for technique, seed in SEEDS.items():
        style, rng = held_out_style(technique, seed), np.random.default_rng([seed, 1])
        for number, index in enumerate(rng.permutation(len(choices))[:PICTURES], 1):
            pixels = np.round(render(choices[index], style, rng) * 255).astype(np.uint8)
            path = REFERENCES / f"{technique}_{number}.png"
            Image.fromarray(pixels).save(path, optimize=True)
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
