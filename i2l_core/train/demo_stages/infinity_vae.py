"""Stage `infinity_vae`: the picture coder of the demo world's Infinity.

The encoder computes a linear code (infinity_code.py), so only the decoder learns: from crops of half the size, at a
quarter of the cost, then from whole pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...demo import files
from ...demo.infinity import CODER, SCALES
from ...demo.judge import style_distance
from ...infinity.bits import features
from ...infinity.coder import Coder
from ...infinity.scales import Scales
from ..plan import Plan
from .data import draw_pictures, test_pool, train_pool
from .decoder import restoration_loss
from .infinity_code import as_input, fit, put_into
from .run import StageRun

_CROPPED = 0.65  # of the steps
_HALVED = Scales(tuple((-(-h // 2), -(-w // 2)) for h, w in SCALES.maps), (4, 4))
_MEASURED = 96  # unseen pictures


def build(seed: int) -> Coder:
    torch.manual_seed(seed)
    coder = Coder(CODER)
    for name, p in coder.named_parameters():
        if name.startswith("decoder.") and name.endswith("conv2.weight"):  # residual branches start small
            torch.nn.init.normal_(p, std=0.01)
    return coder


def is_hidden_filter(name: str, p: Tensor) -> bool:
    """Whether Muon updates this parameter: all convolutions but the one to pixels."""
    return p.ndim == 4 and not name.endswith("conv_out.weight")


def train(folder: Path, plan: Plan) -> tuple[StageRun, Coder]:
    pool, unseen, judge = train_pool(), test_pool(), files.load_judge()
    coder = build(plan.seed)
    code = fit(pool)
    put_into(coder.encoder, code, as_input(pool.pictures[:500, 0]))
    run = StageRun(folder, plan, {"decoder": coder.decoder}, is_hidden_filter)

    def loss(step: int) -> Tensor:
        rng, _ = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        scales = _HALVED if step < _CROPPED * plan.steps else SCALES
        side = scales.pixels[0]
        y, x = rng.integers(pool.pictures.shape[2] - side + 1, size=(2, plan.batch)).tolist()
        crops = [
            pool.pictures[s, r, j : j + side, i : i + side]
            for s, r, j, i in zip(styles, rows, y, x, strict=True)
        ]
        pictures = as_input(np.stack(crops))
        sums = features(code.encode(pictures), scales, False).sums
        return restoration_loss(coder.decoder(sums[-1]), pictures)

    @torch.no_grad()
    def measure(step: int) -> dict:
        pictures = as_input(unseen.pictures[:_MEASURED, 0])
        restored = coder.decode(features(coder.encode(pictures), SCALES, False).sums[-1])
        found, wanted = judge((restored + 1) / 2), judge((pictures + 1) / 2)
        return {
            "unseen_psnr": round(float(-10 * F.mse_loss(restored / 2, pictures / 2).log10()), 2),
            "style_distance": round(float(style_distance(found, wanted).mean()), 4),
            "subject": round(float((found.subject.argmax(1) == wanted.subject.argmax(1)).float().mean()), 4),
        }

    run.train(loss, [(200, measure)])
    return run, coder
