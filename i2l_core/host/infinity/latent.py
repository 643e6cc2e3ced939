"""A picture of Infinity as a LATENT: the host's VAE nodes take it, its samplers of diffusion models do not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import I2LError

# Every sampler of the host asks a LATENT for it, and nothing else does
_ASKED_BY_SAMPLERS = "downscale_ratio_spacial"


class InfinityLatent(dict[str, Any]):
    """{"samples": sum of codes (B, bits, H, W)}. A sampler of diffusion models would stretch one that is all zeros to
    its own channels, and draw on one that has as many; asked by a sampler, this raises I2LError."""

    def get(self, key: str, default: Any = None) -> Any:
        if key == _ASKED_BY_SAMPLERS:
            raise I2LError(
                "this LATENT is a picture of Infinity, which a diffusion model cannot sample; use VAE Decode with "
                "Infinity's VAE, then VAE Encode with the diffusion model's own"
            )
        return super().get(key, default)

    def copy(self) -> InfinityLatent:
        return InfinityLatent(self)


def latent_of(picture: Tensor) -> InfinityLatent:
    return InfinityLatent(samples=picture)
