"""Style regions: each region is a conditioning with a mask and has batch rows of its own in the forward.

    x0 = sum_r m_r x0_r / sum_r m_r        the host's own mix of masked conditionings, at every step

Masks on tokens (`live.loras.LiveLoRA.mask`) need no further rows, but image tokens attend to each other, so the styles
mix in the whole picture: docs/fusion.md has the figures.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..errors import I2LError
from ..schedule import ALWAYS, Schedule
from .live.branches import Branch, tagged
from .live.engine import attach
from .live.loras import LiveLoRA, checked_mask
from .lora_model import fit_lora_model

Conditioning = list[list[Any]]

_KEY = "i2l_regions"
_WHOLE = (
    "i2l_without_regions"  # in the values of each entry: the positive conditioning before the first region
)


def add_region(
    model: ModelPatcher,
    positive: Conditioning,
    value: Any,
    mask: Tensor,
    strength: float = 1.0,
    schedule: Schedule = ALWAYS,
    prompt: Conditioning | None = None,
) -> tuple[ModelPatcher, Conditioning]:
    """Returns (a clone of `model`, `positive` with one more region), to be used together. The inputs do not change.

    Inside of `mask`, (N, H, W) in 0..1, the LORA_MODEL `value` acts and `prompt` is drawn, or without one what
    `positive` asked for before its first region; outside of it all is as it was. A region lies on top of earlier
    ones. Each is one prediction more per step, on the positive side alone. `start`, `end`, `curve`: as in `LiveLoRA`.
    Raises I2LError for a mask without area or with NaN, no prompt, and a LoRA that does not fit.
    """
    if not positive:
        raise I2LError("positive has no prompt; connect a CLIP Text Encode")
    mask = checked_mask(mask).clamp(0, 1)
    _check_batches(positive, mask)
    if not mask.any():
        raise I2LError("the mask of the region is black everywhere; paint white where the style should be")
    tag = f"region {uuid4().hex}"
    fit = fit_lora_model(value, model)
    styled = attach(model, LiveLoRA(fit.lora, strength, Branch.POSITIVE, tag, schedule=schedule, fit=fit))
    whole = positive[0][1].get(_WHOLE, positive)
    styled.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, _KEY)
    styled.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, _sampled)
    regions = [*_within(positive, 1 - mask), *tagged(_within(prompt or whole, mask), tag)]
    return styled, [[tensor, {**values, _WHOLE: whole}] for tensor, values in regions]


def _check_batches(positive: Conditioning, mask: Tensor) -> None:
    """Raise I2LError when masks are for batches of different sizes."""
    own = (values["mask"] for _, values, *_ in positive if values.get("mask") is not None)
    for count in (part.reshape(-1, *part.shape[-2:]).shape[0] for part in own):
        if 1 != count != mask.shape[0] != 1:
            raise I2LError(
                f"the mask of the region has {mask.shape[0]} pictures, a mask before it {count}; give every region one "
                "mask, or each of them one for each picture of the batch"
            )


def _sampled(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Around a sampling. The host takes the first of too many masks, and stops in the middle when they are too few."""
    for entry in (entry for conds in executor.class_obj.conds.values() for entry in conds or ()):
        if _WHOLE in entry and entry["mask"].shape[0] not in (1, noise.shape[0]):
            raise I2LError(
                f"the masks of the regions are for {entry['mask'].shape[0]} pictures, the batch has {noise.shape[0]}; "
                "give Style Region one mask, or one for each picture"
            )
    return executor(noise, *args, **kwargs)


def _within(conditioning: Conditioning, mask: Tensor) -> Conditioning:
    """The entries that have a say where `mask` is above 0, there and with that weight."""
    found = []
    for tensor, values, *_ in conditioning:
        own = values.get("mask")
        part = mask if own is None else mask * _resized(own, mask)
        if part.any():
            found.append([tensor, {**values, "mask": part}])
    return found


def _resized(mask: Tensor, like: Tensor) -> Tensor:
    mask = mask.reshape(-1, *mask.shape[-2:]).to(like)
    return F.interpolate(mask[:, None], like.shape[-2:], mode="area")[:, 0]
