"""A LoRA with where and when it acts, and a set of them prepared for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...checks import check_strength
from ...errors import I2LError
from ...lora import LoRA, LowRank, Target, to_whole_weights
from ...ranges import mask_values
from ...schedule import ALWAYS, Schedule
from ..patch import Fit
from .branches import Branch, Chunk

_MOST_STRETCHED = 1.1  # how far the proportions of a mask may be off: rounding to the latent's grid


@dataclass(frozen=True, eq=False)
class LiveLoRA:
    """A LoRA, and where and when it acts.

    `branch`, `tag`: only on rows of that branch, or of conditionings with that tag (`branches.tagged`).
    `schedule`: at which steps, and by which factor on `strength`.
    `mask`: (N, H, W) in 0..1, N = 1 or the batch size, any resolution.
    `fit`: how `lora` fits the MODEL, where that is known; `attach` finds it out otherwise.
    Raises I2LError for numbers out of range.
    """

    lora: LoRA
    strength: float = 1.0
    branch: Branch | None = None
    tag: str | None = None
    mask: Tensor | None = None
    schedule: Schedule = ALWAYS
    fit: Fit | None = None

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.mask is not None:
            object.__setattr__(self, "mask", checked_mask(self.mask))

    def acts_on(self, chunk: Chunk) -> bool:
        return self.branch in (None, chunk.branch) and (self.tag is None or self.tag in chunk.tags)


def checked_mask(mask: Tensor) -> Tensor:
    """The mask as float32. Raises I2LError unless it is (N, H, W), and finite and in 0..1."""
    shape = tuple(mask.shape)
    if mask.ndim != 3 or 0 in shape:
        raise I2LError(f"the mask must be a MASK, (pictures, height, width), got {shape}")
    return mask_values("the mask", mask)


def check_mask_fits(mask: Tensor | None, latent: Sequence[int]) -> None:
    """Raise I2LError when a mask cannot be for a batch of latents of shape `latent`, (N, C, ..., H, W)."""
    if mask is None:
        return
    if mask.shape[0] not in (1, latent[0]):
        raise I2LError(
            f"the mask has {mask.shape[0]} pictures, the batch {latent[0]}; give one mask, or one for each"
        )
    mask_ratio, ratio = mask.shape[-1] / mask.shape[-2], latent[-1] / latent[-2]
    if not 1 / _MOST_STRETCHED <= mask_ratio / ratio <= _MOST_STRETCHED:
        raise I2LError(
            f"the mask is {mask.shape[-1]}x{mask.shape[-2]} (width x height), of other proportions than the "
            f"picture ({latent[-1]}x{latent[-2]} in the latent); make it of the picture's proportions"
        )


@dataclass(frozen=True, eq=False)
class LiveSet:
    """All live LoRAs of one MODEL, with one layer per weight."""

    loras: tuple[LiveLoRA, ...]
    layers: tuple[Mapping[Target, LowRank], ...]  # of each LoRA
    targets: tuple[Target, ...] = field(init=False)  # of any of them

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "targets", tuple(sorted({target for part in self.layers for target in part}))
        )

    @classmethod
    def of(cls, loras: Sequence[LiveLoRA], widths: Mapping[str, int]) -> LiveSet:
        """`widths`: weight -> its number of rows in that model."""
        return cls(tuple(loras), tuple(to_whole_weights(live.lora, widths).layers for live in loras))

    @property
    def nbytes(self) -> int:
        return sum(layer.down.nbytes + layer.up.nbytes for part in self.layers for layer in part.values())
