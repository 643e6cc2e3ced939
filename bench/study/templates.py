"""Templates beside a style on the demo world's FLUX.2: the paper's section 4.5 as numbers.

Structure: what share of the content is right with a picture of it and no prompt, with both, and with the prompt alone,
and what the picture does to the style. Brightness: the luminance of what is drawn along the slider, and the style at
the neutral value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from i2l_core.demo import files
from i2l_core.demo.backbone import Backbone
from i2l_core.demo.flux2 import Extras, Flux2Backbone, KeysValues
from i2l_core.demo.sampler import Sampling, sample
from i2l_core.files.safetensors import read_header
from i2l_core.kv_caches.value import recognise_value
from i2l_core.predictors.query.config import QueryConfig
from i2l_core.predictors.query.file import load_predictor
from i2l_core.predictors.query.network import QueryNetwork
from i2l_core.references import GRAY
from i2l_core.train.demo_stages import structure

from .._world import Bench, Case

VALUES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_CFG = 3.0
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear RGB in BT.709; here of the pictures' own values
_BLOCK = 16  # styles sampled together

Caches = dict[str, KeysValues]


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """Figures of all conditions; differences from the style alone with their intervals."""
    world = _World(bench, steps)
    style = world.paint("style", lora=True)
    none = world.paint("none", lora=False)
    alone = world.paint("structure, no prompt", lora=True, picture=True, prompt=False)
    both = world.paint("style, structure and prompt", lora=True, picture=True)
    bright = {value: world.paint(f"brightness {value:g}", lora=True, value=value) for value in VALUES}
    together = world.paint("style, structure, brightness 0.7", lora=True, picture=True, value=0.7)
    rows = torch.stack([_luminance(case.pictures) for case in bright.values()], 1)  # (S * P, values)
    slopes = _slopes(rows)
    return {
        "cases": {
            name: {**case.figures(), "luminance": round(float(_luminance(case.pictures).mean()), 4)}
            for name, case in {
                "none": none,
                "style": style,
                "style and structure, no prompt": alone,
                "style, structure and prompt": both,
                "style, structure, brightness 0.7": together,
                **{f"style, brightness {value:g}": case for value, case in bright.items()},
            }.items()
        },
        "style_distance_over_style_alone": {
            "with structure": bench.paired(both.style_distance, style.style_distance),
            "with brightness 0.5": bench.paired(bright[0.5].style_distance, style.style_distance),
        },
        "all_right_over_prompt_alone": bench.paired(both.right.all(1).float(), style.right.all(1).float()),
        "luminance_per_unit_of_the_slider": bench.paired(slopes, torch.zeros_like(slopes)),
        "pictures_whose_luminance_rises_at_every_step": round(
            float((rows.diff(dim=1) > 0).all(1).float().mean()), 4
        ),
        "mean_luminance_rises_at_every_step": bool((rows.mean(0).diff() > 0).all()),
    }


class _World:
    """The demo world's FLUX.2 with its predictor and templates, on a bench's styles."""

    def __init__(self, bench: Bench, steps: int) -> None:
        self.bench, self.sampling = bench, Sampling(steps, cfg=_CFG)
        self.network: Flux2Backbone = files.load_flux2().requires_grad_(False)
        self.control = structure.load(files.WEIGHTS).requires_grad_(False)
        template = recognise_value(read_header(files.WEIGHTS / files.BRIGHTNESS))
        assert template is not None
        self.template = template
        tensors, about = files.read(files.WEIGHTS / files.FLUX2_PREDICTOR)
        self.predictor = QueryNetwork(QueryConfig.from_json(about["predictor"]))
        self.predictor.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        self.encoder = load_predictor(files.WEIGHTS / files.PREDICTOR).encoder.float()
        self.encoder.requires_grad_(False)
        masks = torch.from_numpy(bench.pool.masks[:, bench.n_references :].copy()).flatten(0, 1)
        pictures = structure.pictures_of(masks).movedim(-1, 1)  # BHWC -> BCHW
        vae = bench.encoder(pictures)  # model latents; the control looks at them as the VAE node gives them
        self.pictures = vae / structure.HOST_SCALE + structure.HOST_SHIFT
        self.style = self._loras(bench.references)
        self.gray = self._loras(torch.full_like(bench.references[:1], GRAY))

    def paint(
        self, name: str, lora: bool, picture: bool = False, value: float | None = None, prompt: bool = True
    ) -> Case:
        """Asymmetric guidance where there is a LoRA; the same picture with an empty prompt, and the neutral value, on
        the negative side."""
        bench, out = self.bench, []
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(len(bench.words), 16, 16, 16, generator=generator)
        for first in range(0, bench.styles, _BLOCK):
            styles = slice(first, first + _BLOCK)
            rows = slice(first * bench.n_prompts, (first + _BLOCK) * bench.n_prompts)
            words = bench.words[rows] if prompt else bench.no_words.expand_as(bench.words[rows])
            nothing = bench.no_words.expand_as(words)
            positive = [self._brightness(value)] if value is not None else []
            negative = [self._brightness(0.5)] if value is not None else []
            if picture:
                positive.append(self.control.keys_values(self.pictures[rows], words))
                negative.append(self.control.keys_values(self.pictures[rows], nothing))
            sides = (
                Extras(lora={k: (d[styles], u[styles]) for k, (d, u) in self.style.items()} if lora else {},
                       cache=_merged(positive, len(words))),
                Extras(lora=self.gray if lora else {}, cache=_merged(negative, len(words))),
            )  # fmt: skip
            network = cast(Backbone, self.network)  # it takes its extras where that one takes a LoRA
            latents = sample(network, noise[rows], words, nothing, self.sampling, *cast(Any, sides))
            out.append(bench.decoder(latents).clamp(0, 1))
        return bench.judge(torch.cat(out))

    def _loras(self, references: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        tokens = (
            self.encoder(references.flatten(0, 1) * 2 - 1).unflatten(0, references.shape[:2]).flatten(1, 2)
        )
        return {target.weight: pair for target, pair in self.predictor(tokens).layers().items()}

    def _brightness(self, value: float) -> Caches:
        cache = self.template.make([value], 1000.0, "brightness")
        return {name: (k.float(), v.float()) for name, (k, v) in cache.blocks.items()}


def _merged(caches: Sequence[Caches], batch: int) -> Caches:
    if not caches:
        return {}
    return {
        name: cast(
            KeysValues,
            tuple(
                torch.cat([cache[name][i].expand(batch, -1, -1, -1) for cache in caches], 1) for i in (0, 1)
            ),
        )
        for name in caches[0]
    }


def _luminance(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N,)"""
    return (pictures.mean((2, 3)).cpu() * torch.tensor(_LUMINANCE)).sum(1)


def _slopes(rows: Tensor) -> Tensor:
    """Least squares slope of each row over VALUES."""
    x = torch.tensor(VALUES) - sum(VALUES) / len(VALUES)
    return (rows * x).sum(1) / x.square().sum()
