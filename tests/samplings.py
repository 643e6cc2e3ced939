"""Whole samplings of tiny models, and the truth to compare with: separately loaded, separately patched models."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_models import LATENTS, build, conditioning

STEPS = 3


@dataclass
class Case:
    """One sampling: a network and what a user sets."""

    name: str
    cfg: float = 4.0
    batch: int = 1
    lengths: tuple[int, int] = (7, 7)
    extra: dict[str, Any] = field(default_factory=dict)  # on both conditionings

    def conds(self) -> tuple[list[Any], list[Any]]:
        pair = (conditioning(self.name, seed, length) for seed, length in enumerate(self.lengths))
        positive, negative = ([[tensor, {**values, **self.extra}] for tensor, values in c] for c in pair)
        return positive, negative

    def noise(self) -> torch.Tensor:
        return torch.randn(self.batch, *LATENTS[self.name], generator=torch.Generator().manual_seed(9))


def run(guider, case: Case, steps: int = STEPS) -> torch.Tensor:
    """A whole sampling with an ordinary sampler."""
    import comfy.samplers

    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
    noise = case.noise()
    with torch.inference_mode():
        return guider.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.sampler_object("euler"),
            sigmas,
            disable_pbar=True,
            seed=1,
        )


def cfg_guider(model, case: Case):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*case.conds())
    guider.set_cfg(case.cfg)
    return guider


def side_by_side(positive_model, negative_model, case: Case):
    """Core's own guider for two models: right when, and only when, they share no weights."""
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    guider = Guider_DualModel(positive_model, negative_model)
    guider.set_conds(*case.conds())
    guider.set_cfg(case.cfg)
    return guider


@functools.lru_cache(maxsize=64)
def merged(name: str, *loras, strength: float = 1.0):
    """A model of its own with LoRAs in its weights. The same one when asked again: sampling does not change it."""
    from i2l.i2l_core.host.patch import apply_merged

    model = build(name)
    for lora in loras:
        model = apply_merged(model, lora, strength)
    return model


def asymmetric(model, style, neutral=None):
    from i2l.i2l_core.host.live.branches import Branch
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA

    loras = [LiveLoRA(style, branch=Branch.POSITIVE)]
    if neutral is not None:
        loras.append(LiveLoRA(neutral, branch=Branch.NEGATIVE))
    return attach(model, *loras)
