"""What the predictor has learned: are LoRAs of one style alike, and do those of styles between two lie between?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from i2l_core.demo.content import contents
from i2l_core.demo.render import render
from i2l_core.demo.style import Style

from .._world import Bench, LoRAs, predict

_BETWEEN = (0.0, 0.25, 0.5, 0.75, 1.0)
_PAIRS = 64
_CONTENTS = 4


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """`alike`: cosines of whole changes, of one style from two sets of four references, and of different styles.

    `between`: styles half-way in every factor (of one technique), rendered, predicted from; the share of the way that
    the LoRA has gone from A's to B's, by projection, and how far off the line it is (1: as far as A from B).
    """
    del steps  # nothing is sampled
    one, two = predict(bench.references[:, :4]), predict(bench.references[:, 4:])
    products = _products(one, two)
    lengths = [_products(lora, lora).diagonal().sqrt() for lora in (one, two)]
    cosines = products / lengths[0][:, None] / lengths[1][None]
    same, other = (
        cosines.diagonal(),
        cosines[~torch.eye(bench.styles, dtype=torch.bool, device=cosines.device)],
    )
    nearest = (cosines.argmax(1) == torch.arange(bench.styles, device=cosines.device)).float().mean()
    return {
        "alike": {
            "same_style": _spread(same),
            "other_style": _spread(other),
            "nearest_is_the_same_style": round(float(nearest), 4),
        },
        "between": _between(bench),
    }


def _between(bench: Bench) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    known = bench.pool.styles
    pairs = [(a, b) for a in known for b in known if a.technique == b.technique and a != b]
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:_PAIRS]]
    shown = contents(True)[:_CONTENTS]
    loras = []
    for t in _BETWEEN:
        styles = [_mixed(a, b, t) for a, b in chosen]
        pictures = np.stack([[render(c, style, np.random.default_rng(3)) for c in shown] for style in styles])
        loras.append(predict(torch.from_numpy(pictures).permute(0, 1, 4, 2, 3).to(bench.device)))
    first, last = loras[0], loras[-1]
    aa, ab, bb = (_products(x, y).diagonal() for x, y in ((first, first), (first, last), (last, last)))
    length = aa - 2 * ab + bb  # |B - A|^2
    found = {}
    for t, lora in zip(_BETWEEN, loras, strict=True):
        a, b, own = (_products(lora, x).diagonal() for x in (first, last, lora))
        along = ((b - a) - (ab - aa)) / length  # <X - A, B - A> / |B - A|^2
        off = (own - 2 * a + aa - along**2 * length).clamp(min=0) / length
        found[f"{t:g}"] = {"share_of_the_way": _spread(along), "off_the_line": _spread(off.sqrt())}
    return found


def _mixed(a: Style, b: Style, t: float) -> Style:
    """Circular factors go the shorter way round."""

    def turn(x: float, y: float) -> float:
        return (x + t * ((y - x + 0.5) % 1 - 0.5)) % 1

    def plain(x: float, y: float) -> float:
        return x + t * (y - x)

    ways = (turn, turn, plain, plain, turn, plain)
    return Style(
        a.technique, *(way(x, y) for way, x, y in zip(ways, a.as_tuple()[1:], b.as_tuple()[1:], strict=True))
    )


def _products(a: LoRAs, b: LoRAs) -> Tensor:
    """<dW_i, dW_j> over all weights for all styles i of `a` and j of `b`: tr((B_i^T B_j)(A_j A_i^T)), (S, S)."""
    total = torch.zeros(())
    for weight in a:
        (down_a, up_a), (down_b, up_b) = a[weight], b[weight]
        downs = torch.einsum("iko,jlo->ijkl", down_a, down_b)
        ups = torch.einsum("iok,jol->ijkl", up_a, up_b)
        total = total.to(downs) + (downs * ups).sum((2, 3))
    return total


def _spread(values: Tensor) -> dict[str, float]:
    low, middle, high = values.float().cpu().quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {"p10": round(low, 4), "median": round(middle, 4), "p90": round(high, 4)}
