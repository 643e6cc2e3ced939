"""Principal components of a feature map, and their exchange: Principal Feature Blending (arXiv 2507.04482, 4.2).

A feature map F (C, N), C channels at N places, is U S V^T. Its principal part keeps component i with weight w_i:

    Phi(F) = U diag(w) S V^T = U diag(w) U^T F         w_i = exp(-alpha i), from the largest component on
    F' = F + strength (Phi(F_style) - Phi(F))

U comes from the smaller of the two Gram matrices, F F^T and F^T F, in float64: no large decomposition is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decaying(alpha: float, count: int) -> Tensor:
    """w_i = exp(-alpha i), (count,) float64. alpha 0: all components alike; large: the first one alone."""
    return torch.exp(-alpha * torch.arange(count, dtype=torch.float64))


def largest(k: int, count: int) -> Tensor:
    """The k largest components whole, the others not at all, (count,) float64."""
    return (torch.arange(count) < k).double()


def principal(features: Tensor, weights: Tensor) -> Tensor:
    """Phi of each map: (B, C, N), any float dtype -> the same. `weights`: (at least min(C, N),), for the largest
    component first; a map of lower rank uses the first ones."""
    f = features.double()
    wide = f.shape[1] <= f.shape[2]
    gram = f @ f.mT if wide else f.mT @ f
    _, vectors = torch.linalg.eigh(gram)
    vectors = vectors.flip(-1)  # the largest first
    kept = vectors * weights[: vectors.shape[-1]].to(f)
    out = kept @ (vectors.mT @ f) if wide else (f @ kept) @ vectors.mT
    return out.to(features.dtype)
