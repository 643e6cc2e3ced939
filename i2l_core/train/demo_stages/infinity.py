"""Stage `infinity`: the transformer of the demo world's Infinity, on the codes of its encoder.

All scales of a picture are learned at once: a mask hides later ones. Some bits of the input are flipped and what
follows is computed again from them, so that the model learns to correct what it drew (arXiv 2412.04431, 3.4). In the
middle a head reads where the figures are, as in the stage `backbone`. The text encoder is the backbone's and frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...demo import files
from ...demo.infinity import SCALES, TRANSFORMER
from ...demo.pool import Pool
from ...infinity.bits import as_tokens, codes, resized
from ...infinity.rope import Rotation, rotation
from ...infinity.transformer import Infinity
from ..plan import Plan
from .backbone import MaskHead, mask_targets
from .data import draw_pictures, draw_prompts, token_ids, train_pool
from .infinity_code import LinearCode, as_input, fit
from .run import StageRun

_FLIPPED = 0.2  # at most this share of the bits, drawn for each picture
_TAP = 4  # the block after which the head reads
_MASK_WEIGHT = 0.3


class Taught(nn.Module):
    """Latents -> loss, with the model and the head that reads outlines."""

    def __init__(self, model: Infinity, head: MaskHead) -> None:
        super().__init__()
        self.model, self.head = model, head
        turns = [rotation(SCALES, index, model.config.head_width) for index in range(len(SCALES.maps))]
        self._turn: Rotation = (torch.cat([t[0] for t in turns]), torch.cat([t[1] for t in turns]))
        level = torch.repeat_interleave(torch.arange(len(SCALES.counts)), torch.tensor(SCALES.counts))
        self._mask = level[:, None] >= level[None]
        weight = torch.tensor(SCALES.counts).float()[level] ** -0.5
        self._weight = (weight / weight.sum())[None, :, None]

    def forward(
        self, text: Tensor, empty: Tensor, inputs: Sequence[Tensor], bits: Tensor, cover: Tensor
    ) -> tuple[Tensor, Tensor]:
        """text: (B, L, W); empty: (B,) bool, where the learned empty prompt stands for it; inputs: tokens of every
        scale but the first (B, n, bits); bits: (B, all n, bits) float, to be drawn; cover: of backbone.mask_targets.
        The losses of bits and of outlines."""
        model = self.model
        text = torch.where(empty[:, None, None], model.empty_text(text.shape[1]), text)
        prompt = model.prompt(text, text.dtype)
        later = [model.embed(tokens, index, text.dtype) for index, tokens in enumerate(inputs, 1)]
        x = torch.cat([model.start(prompt), *later], 1)
        tapped = x
        for number, (block, words) in enumerate(zip(model.each_block(), prompt.words, strict=True)):
            x = block(
                x,
                prompt.six,
                words,
                text.dtype,
                turn=self._turn,
                memory=_Nothing(),
                layer=number,
                index=0,
                paths=(0,),
                rows=len(x),
                corrected=False,
                mask=self._mask,
            )
            if number + 1 == _TAP:
                tapped = x
        logits = model.logits(x, prompt)
        wrong = F.binary_cross_entropy_with_logits(logits[..., 1] - logits[..., 0], bits, reduction="none")
        outlines = self.head(tapped[:, -SCALES.counts[-1] :])
        return (wrong * self._weight).sum(1).mean(), F.binary_cross_entropy_with_logits(outlines, cover)


class _Linear(nn.Linear):
    """With products in bfloat16, three times as fast on a CPU that has them. Weights and sums stay float32."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.bfloat16(), None if self.bias is None else self.bias.bfloat16()
        return F.linear(input.bfloat16(), weight, bias).float()


class _Layers:
    """Stands for torch.nn; attention stays float32, whose gradient is faster on a CPU."""

    Linear, LayerNorm, Embedding = _Linear, nn.LayerNorm, nn.Embedding


class _Nothing:
    """Stands for the memory of earlier scales where all are computed at once."""

    def extended(
        self, layer: int, index: int, paths: Sequence[int], keys: Sequence[Tensor], values: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        return list(zip(keys, values, strict=True))


def build(seed: int, layers: Any = _Layers) -> tuple[Infinity, MaskHead]:
    """A new network from `layers`, torch.nn or what stands for it. Gains of the blocks and the output are small at
    first, cosines are sharpened four times."""
    torch.manual_seed(seed)
    model = Infinity(TRANSFORMER, layers)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("scale_mul_1H11"):
                p.fill_(1.4)
            elif name in ("text_norm.weight",) or name.endswith("ca_norm.weight"):
                p.fill_(1)
            elif name.endswith("bias"):
                p.zero_()
            elif name.endswith("ada_gss"):
                p.normal_(std=0.02)
                p[:, :, :2] += 0.1
            elif "ada_lin" in name or name == "head.weight":
                p.normal_(std=0.002)
            elif name in ("pos_start", "lvl_embed.weight", "cfg_uncond") or name.endswith("mat_q"):
                p.normal_(std=0.5)
            else:
                p.normal_(std=p.shape[-1] ** -0.5)
    for name, p in model.named_parameters():  # a released file has no bias of k
        if name.endswith("sa.qk.bias"):
            hold_at_zero(p, slice(TRANSFORMER.width, None))
        elif name.endswith("ca.mat_kv.bias"):
            hold_at_zero(p, slice(TRANSFORMER.width))
    return model, MaskHead(TRANSFORMER.width)


def hold_at_zero(bias: nn.Parameter, part: slice) -> None:
    """Let only the rest of a bias learn."""
    mask = torch.ones_like(bias)
    mask[part] = 0
    bias.register_hook(lambda gradient: gradient * mask)


def is_hidden_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon updates this parameter: matrices inside blocks."""
    return p.ndim == 2 and ".blocks." in name


def self_corrected(latents: Tensor, flips: Tensor) -> tuple[Tensor, list[Tensor]]:
    """latents (B, d, H, W) and flips (B, n, d) bool -> the bits to be drawn (B, n, d) float, and what the model sees at
    each scale but the first, tokens (B, n_s, d): sums in which those bits are flipped. Bits of a scale are those of
    what the flipped sum has left over."""
    left, total = latents, torch.zeros_like(latents)
    wanted, seen = [], []
    for size, flip in zip(SCALES.maps, flips.split(list(SCALES.counts), 1), strict=True):
        if wanted:
            seen.append(as_tokens(resized(total, size), False))
        bits = as_tokens(F.interpolate(left, size=size, mode="area"), False) > 0
        code = resized(codes(bits ^ flip, size, False), SCALES.last)
        left, total = left - code, total + code
        wanted.append(bits)
    return torch.cat(wanted, 1).float(), seen


def train(folder: Path, plan: Plan, compiled: bool) -> tuple[StageRun, Infinity]:
    pool = train_pool()
    latents = latents_of(pool, fit(pool))
    _, text = files.load_backbone()
    text.requires_grad_(False)
    model, head = build(plan.seed)
    run = StageRun(folder, plan, {"infinity": model, "head": head}, is_hidden_matrix)
    taught = torch.compile(Taught(model, head)) if compiled else Taught(model, head)
    parts: dict[str, float] = {}

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        prompts = draw_prompts(pool, styles, rows, rng)
        share = torch.rand(plan.batch, 1, 1, generator=generator) * _FLIPPED
        flips = torch.rand(plan.batch, sum(SCALES.counts), TRANSFORMER.bits, generator=generator) < share
        bits, inputs = self_corrected(latents[styles, rows].float(), flips)
        cover = mask_targets(torch.from_numpy(pool.masks[styles, rows]))
        empty = torch.tensor([not prompt for prompt in prompts])
        of_bits, outline = taught(text(token_ids(prompts)), empty, inputs, bits, cover)
        parts.update(bits=round(float(of_bits.detach()), 4), outline=round(float(outline.detach()), 4))
        return of_bits + _MASK_WEIGHT * outline

    run.train(loss, [(1, lambda step: dict(parts))])
    return run, model


def latents_of(pool: Pool, code: LinearCode, block: int = 100) -> Tensor:
    """Latents of a whole pool (styles, per_style, d, H, W) float16."""
    found = [
        code.encode(
            as_input(pool.pictures[start : start + block].reshape(-1, *pool.pictures.shape[2:]))
        ).half()
        for start in range(0, len(pool.styles), block)
    ]
    return torch.cat(found).unflatten(0, (len(pool.styles), -1))
