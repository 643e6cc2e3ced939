"""A whole drawing with Infinity, from what a node is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import I2LError
from ...infinity.config import InfinityConfig
from ...infinity.paths import Drawing, Sampling
from ...infinity.scales import RATIOS, Scales, scales_of
from ...schedule import Curve
from .model import InfinityModel
from .prompts import texts_of
from .run import Drawn, run
from .style import PictureStyle, WordStyle, kept_bits, styling_of
from .vae import InfinityVAE

# Width and height as artists say them, for each ratio of height / width
_NAMES = ("3:1", "5:2", "2:1", "7:4", "3:2", "4:3", "5:4", "1:1")
ASPECTS = dict(
    zip((*_NAMES, *(":".join(reversed(n.split(":"))) for n in _NAMES[-2::-1])), RATIOS, strict=True)
)


@dataclass(frozen=True)
class Start:
    """The picture of a LATENT, whose bits are kept at the first `scales` scales."""

    latent: Mapping[str, Any]
    scales: int


@dataclass(frozen=True)
class Request:
    """What to draw. `positive`, `negative`: CONDITIONING; no negative means the model's own empty prompt. `aspect`: one
    of ASPECTS; `size`: one of scales.SIZES. `curve`: how guidance changes along the scales, see `guidance_of`.
    `temperature` 0: what the model was released with."""

    positive: Sequence[Any]
    negative: Sequence[Any] | None = None
    style: PictureStyle | WordStyle | None = None
    start: Start | None = None
    size: str = "1M"
    aspect: str = "1:1"
    seed: int = 0
    cfg: float = 3.0
    curve: str = ""
    temperature: float = 0.0
    top_p: float = 0.97
    rows: int = 1


def sample(model: InfinityModel, request: Request, preview: InfinityVAE | None = None) -> Drawn:
    """Raises I2LError for what does not fit the model or each other, and as `run` does."""
    if request.aspect not in ASPECTS:
        raise I2LError(
            f"expected an aspect of {', '.join(ASPECTS)}, got {request.aspect}; choose one of them"
        )
    scales = _scales(model, request)
    count = len(scales.maps)
    drawing = Drawing(
        scales,
        texts_of("a prompt", request.positive, count),
        None if request.negative is None else texts_of("a negative prompt", request.negative, count),
        request.rows,
        _kept(request.start, model.config, scales),
    )
    sampling = Sampling(
        seed=request.seed,
        guidance=guidance_of(request.cfg, request.curve, count),
        temperature=request.temperature or (1.0 if model.config.patchify else 0.5),
        top_p=request.top_p,
    )
    if request.style is None:
        return run(model, drawing, sampling, preview=preview)
    styling = styling_of(request.style, model, drawing, sampling)
    last = styling.structure is not None and styling.structure[1] >= count
    return run(model, drawing, sampling, replace(styling, content=last), preview)


def _scales(model: InfinityModel, request: Request) -> Scales:
    if model.scales is None:
        return scales_of(ASPECTS[request.aspect], request.size)
    ratio = model.scales.last[0] / model.scales.last[1]
    if ASPECTS[request.aspect] != ratio:
        own = next(name for name, of in ASPECTS.items() if of == ratio)
        height, width = model.scales.pixels
        raise I2LError(
            f"{model.name} draws pictures of {width} x {height} alone, not {request.aspect}; set aspect to {own}"
        )
    return model.scales


def guidance_of(cfg: float, curve: str, count: int) -> list[float]:
    """Guidance at each scale: the curve says how much of what `cfg` adds to 1, from the first scale (0) to the
    last (1). Once it stays 0, scales cost half. Raises I2LError for a curve that is none."""
    along = Curve.parse(curve)
    if along is None:
        return [cfg] * count
    return [1 + (cfg - 1) * along(index / max(1, count - 1)) for index in range(count)]


def _kept(start: Start | None, config: InfinityConfig, scales: Scales) -> tuple[Any, ...]:
    return () if start is None else kept_bits(start.latent, config, scales, start.scales)
