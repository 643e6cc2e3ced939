"""Values of sockets and widgets: pictures with weights and masks, strengths of blocks."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2l_core.lora import LoRA, LowRank, Target
from i2l_core.mixing.block_weights import BlockWeights, apply_block_weights
from i2l_core.references import Reference, references_with
from i2l_core.references.thumbnail import thumbnail
from i2l_core.schedule import Curve

from .case import Case, Wrong
from .values import NUMBERS, damaged_text, value

_CURVES = ("", "0: 1, 1: 0", "0:1", "0: 0; 0.5: 10; 1: -10", "fade in")
_NUMBERS = (0.0, 1.0, 0.5, -2.0, 1e-30, 1e38, 1e308)
# layer -> what strengthens it, and its depth among two blocks
_LAYERS = {
    "layers.0.attention.to_q": ("attention", "q", 0.0),
    "layers.0.attention.to_v": ("attention", "v", 0.0),
    "layers.1.attention.to_out.0": ("attention", "out", 1.0),
    "layers.1.feed_forward.w2": ("mlp", "", 1.0),
    "cap_embedder.1": ("other", "", None),
}


def block_weights(rng: random.Random, folder: Path) -> Case:
    """Each layer is changed as often as the product of its strengths says, or all are refused."""
    fields = ("attention", "mlp", "other", "q", "k", "v", "out")
    given: dict[str, Any] = {name: rng.choice(_NUMBERS) for name in fields if rng.random() < 0.4}
    if rng.random() < 0.1:
        given[rng.choice(fields)] = rng.choice([one for one in NUMBERS if type(one) in (int, float)])
    said = rng.choice(_CURVES)
    said = damaged_text(rng, said) if rng.random() < 0.5 else said
    names = rng.sample(list(_LAYERS), rng.randrange(1, len(_LAYERS) + 1))
    gen = torch.Generator().manual_seed(rng.randrange(1 << 30))
    layers = {
        Target(name): LowRank(torch.rand(2, 4, generator=gen), torch.rand(4, 2, generator=gen))
        for name in names
    }

    def check() -> None:
        depth = Curve.parse(said)
        found = apply_block_weights(LoRA(layers), BlockWeights(**given, depth=depth)).layers
        last = max((_LAYERS[name][2] or 0.0) for name in names)
        for target, layer in layers.items():
            kind, part, place = _LAYERS[target.weight]
            factors = [given.get(kind, 1.0), given.get(part, 1.0)]
            if place is not None and depth is not None:
                factors.append(depth(place if last else 0.0))
            factor = math.prod(factors) if all(factors) else 0.0  # too large twice, times 0
            got = found[target].delta().double() if target in found else torch.zeros(4, 4).double()
            if not torch.isfinite(got).all():
                raise Wrong(f"{target} is not finite")
            if not torch.allclose(got, layer.delta().double() * factor, rtol=1e-4, atol=1e-37):
                raise Wrong(f"{target} is not changed by {factor:g}")

    return Case(f"{given} {said}".encode(errors="surrogatepass"), check)


def reference(rng: random.Random, folder: Path) -> Case:
    """An IMAGE with a weight and a MASK."""
    gen = torch.Generator().manual_seed(rng.randrange(1 << 30))
    shape = rng.choice(((1, 8, 9, 3), (2, 16, 8, 4), (1, 9, 9, 1), (3, 8, 8, 3)))
    image = _odd(rng, torch.rand(shape, generator=gen))
    mask = None if rng.random() < 0.4 else _odd(rng, torch.rand(shape[:3], generator=gen))
    weight = rng.choice(
        (1.0, 0.5, 0, 1e308, rng.choice([one for one in NUMBERS if not isinstance(one, str)]))
    )

    def check() -> None:
        found = references_with(image, weight, mask)
        if len(found) != len(image):
            raise Wrong(f"{len(found)} references of {len(image)} pictures")
        for one, picture in zip(found, image, strict=True):
            _check_reference(one, picture, weight)
        if found:
            thumbnail(found)

    return Case(f"{tuple(getattr(image, 'shape', ()))} {weight!r} {mask is None}".encode(), check)


def _check_reference(found: Reference, picture: Tensor, weight: float) -> None:
    values = picture.double().clamp(0, 1)
    alpha = values[..., 3:] if values.shape[-1] == 4 else 1.0
    expected = values[..., :3] * alpha + 1 - alpha
    if not torch.allclose(found.pixels.double(), expected.expand_as(found.pixels), atol=1e-3):
        raise Wrong("its pixels are not the picture's")
    if found.weight != weight or not math.isfinite(found.weight):
        raise Wrong(f"its weight is {found.weight!r}, given was {weight!r}")
    mask = found.full_mask
    if mask is not None and (tuple(mask.shape) != found.size or not 0 <= mask.min() <= mask.max() <= 1):
        raise Wrong("its mask is no mask")


def _odd(rng: random.Random, tensor: Tensor) -> Any:
    match rng.randrange(14):
        case 0:
            return tensor.to(rng.choice((torch.int32, torch.bool, torch.complex64, torch.uint8)))
        case 1:
            return tensor.to(rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)))
        case 2:
            tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice(
                (math.nan, math.inf, -math.inf, 255.0, -0.2)
            )
            return tensor
        case 3:
            return tensor[rng.choice((..., 0, slice(0, 0)))]
        case 4:
            return tensor[None]
        case 5:
            return tensor.transpose(1, 2)
        case 6:
            return rng.choice(
                (tensor.to("meta"), tensor.to_sparse(), tensor.numpy(), tensor.tolist(), [tensor])
            )
        case 7:
            return value(rng)
        case 8:
            return torch.zeros_like(tensor)
        case 9:
            return tensor.requires_grad_()
        case _:
            return tensor


MAKERS = {"block_weights": block_weights, "reference": reference}
