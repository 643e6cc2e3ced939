"""Batches: pictures are decoded in worker processes, everything else runs on the device.

A micro-batch is identified by its number in a step and by the device, and holds a part of the step's pairs. A run that
is resumed or split over other devices therefore sees the same pictures in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import I2LError
from ...references import GRAY
from ..base import Base, LatentCodec, Texts
from ..config import PairingTable
from ..flow import noisy, velocity
from .data_set import Styles
from .encoded import EncodedData, as_tensor
from .pairing import Pair, draw

_GRAY_SIDE = 64  # pixels; any square of one colour gives the same tokens


@dataclass(frozen=True)
class Raw:
    """A micro-batch as a worker makes it. `pictures` are (H, W, 3) uint8."""

    pairs: Sequence[Pair]
    references: Sequence[Sequence[Tensor]]  # pictures of each pair
    latents: Sequence[Tensor | None]  # of each target; None: encode its picture
    targets: Sequence[Tensor | None]  # pictures of the targets without latent
    texts: Sequence[Texts | None]  # of each target; None: encode its prompt


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device: P pairs with M targets each, rows grouped by pair."""

    pairs: Sequence[Pair]
    references: Sequence[Sequence[Tensor]]  # P lists of (H, W, 3) floats 0..1
    x: Tensor  # (P M, C, h, w) noisy latents of the model
    sigma: Tensor  # (P M,)
    target: Tensor  # (P M, C, h, w) velocity
    texts: Sequence[Texts]  # P M


@dataclass(frozen=True)
class BatchSplit:
    """How the pairs of a step are split: `count` in total, over `devices`, in micro-batches of `micro`."""

    count: int
    micro: int
    device: int
    devices: int

    def __post_init__(self) -> None:
        if self.count % (self.micro * self.devices):
            raise I2LError(
                f"[plan] batch {self.count} cannot be split over {self.devices} devices in micro-batches of "
                f"{self.micro}; choose a multiple of {self.micro * self.devices}"
            )

    @property
    def rounds(self) -> int:
        """Micro-batches a step on each device."""
        return self.count // (self.micro * self.devices)

    def part(self, turn: int) -> slice:
        """The pairs of this device's micro-batch `turn`, among all pairs of the step."""
        start = (self.device * self.rounds + turn) * self.micro
        return slice(start, start + self.micro)


class MicroBatches(Dataset):
    """Number -> Raw, or the I2LError that it raised: an exception would lose its message between processes."""

    def __init__(
        self, styles: Styles, encoded: EncodedData, pairing: PairingTable, split: BatchSplit, seed: int
    ) -> None:
        self._styles, self._encoded, self._pairing = styles, encoded, pairing
        self._split, self._seed = split, seed

    def __getitem__(self, number: int) -> Raw | I2LError:
        step, turn = divmod(number, self._split.rounds)
        pairs = draw(self._styles, self._pairing, self._split.count, self._seed, step)[self._split.part(turn)]
        try:
            return read(pairs, self._encoded)
        except I2LError as error:
            return error

    def from_step(self, step: int, steps: int, workers: int) -> Iterator[Raw]:
        """Every micro-batch of this device from `step` on, in order. Raises I2LError."""
        numbers = range(step * self._split.rounds, steps * self._split.rounds)
        loader: Iterable[Raw | I2LError] = DataLoader(
            self, batch_size=None, sampler=numbers, num_workers=workers
        )
        for raw in loader:
            if isinstance(raw, I2LError):
                raise raw
            yield raw


def read(pairs: Sequence[Pair], encoded: EncodedData) -> Raw:
    """Decode the pictures of the pairs. Raises I2LError naming a broken picture."""
    references = [[_reference(i, pair.gray, encoded) for i in pair.references] for pair in pairs]
    targets = [target for pair in pairs for target in pair.targets]
    latents = [encoded.latent(target.picture) for target in targets]
    pictures = [
        encoded.pixels(target.picture) if latent is None else None
        for target, latent in zip(targets, latents, strict=True)
    ]
    texts = [encoded.texts(target.picture, target.prompt) for target in targets]
    return Raw(pairs, references, latents, pictures, texts)


def to_device(raw: Raw, base: Base, codec: LatentCodec, device: torch.device) -> Batch:
    """Encode pictures and prompts that are not encoded yet, and add noise. Raises I2LError if latent sizes differ."""
    targets = [target for pair in raw.pairs for target in pair.targets]
    clean = _latents(raw, codec, device)
    spelled = [target.prompt for target, text in zip(targets, raw.texts, strict=True) if text is None]
    made = iter(codec.texts(spelled) if spelled else [])
    texts = [_to(text, device) if text is not None else next(made) for text in raw.texts]
    model = base.process_in(clean)
    noise = torch.stack([_noise(target.seed, model.shape[1:]) for target in targets]).to(device)
    noise = noise * base.noise_scale
    sigma = base.sigmas(torch.tensor([target.u for target in targets], device=device))
    references = [[p.to(device).float() / 255 for p in pictures] for pictures in raw.references]
    return Batch(raw.pairs, references, noisy(model, noise, sigma), sigma, velocity(model, noise), texts)


def _latents(raw: Raw, codec: LatentCodec, device: torch.device) -> Tensor:
    """(P M, C, h, w) float32"""
    pictures = [picture for picture in raw.targets if picture is not None]
    made = iter(codec.encode(torch.stack(pictures).to(device).float() / 255) if pictures else [])
    latents = [(next(made) if latent is None else latent).to(device) for latent in raw.latents]
    if len(sizes := {tuple(latent.shape) for latent in latents}) != 1:
        raise I2LError(
            f"latents of one batch differ in size, {sorted(sizes)}: those in the data set must be of pictures of "
            "[data] height and width"
        )
    return torch.stack(latents).float()


def _reference(index: int, gray: bool, encoded: EncodedData) -> Tensor:
    if gray:
        return torch.full((_GRAY_SIDE, _GRAY_SIDE, 3), round(255 * GRAY), dtype=torch.uint8)
    return as_tensor(encoded.data.open(index))


def _noise(seed: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _to(texts: Texts, device: torch.device) -> Texts:
    return {name: tensor.to(device) for name, tensor in texts.items()}
