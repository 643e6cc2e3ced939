"""Norms, angles and singular directions of low-rank changes, computed from the factors.

    <dW_a, dW_b> = tr(dW_a^T dW_b) = sum((B_a^T B_b) * (A_a A_b^T))        two products of size k x k

No tensor of size d_out x d_in is made. k x k matrices are in fp64. Gradients of norms and angles are finite, also at
zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import I2LError
from ..lora import LoRA, LowRank, Target

RESOLUTION = 1e-7  # singular values below this fraction of the largest are rounding errors, and count as zero


def energy(change: LowRank | LoRA) -> Tensor:
    """The squared Frobenius norm of the whole change, the sum of its squared singular values; shape ()."""
    return inner(change, change).clamp(min=0)


def inner(a: LowRank | LoRA, b: LowRank | LoRA) -> Tensor:
    """The inner product of two layers, or of two LoRAs over all their weights; shape (), fp64.

    A weight that one LoRA lacks counts as zero. Layers on rows of a weight are compared on their common rows.
    """
    if isinstance(a, LoRA) and isinstance(b, LoRA):
        return torch.stack(list(inner_by_weight(a, b).values())).sum()
    assert isinstance(a, LowRank)
    assert isinstance(b, LowRank)
    wide = torch.promote_types(torch.promote_types(a.up.dtype, b.up.dtype), torch.float32)
    ups = a.up.to(wide).T @ b.up.to(wide)  # (k_a, k_b)
    downs = a.down.to(wide) @ b.down.to(wide).T  # (k_a, k_b)
    return (ups.double() * downs.double()).sum()


def inner_by_weight(a: LoRA, b: LoRA) -> dict[str, Tensor]:
    """The inner product weight by weight, for every weight that `a` or `b` adapts."""
    products = {
        target.weight: torch.zeros((), dtype=torch.float64) for lora in (a, b) for target in lora.layers
    }
    others: dict[str, list[tuple[Target, LowRank]]] = {}
    for target, layer in b.layers.items():
        others.setdefault(target.weight, []).append((target, layer))
    for target, layer in a.layers.items():
        for other, other_layer in others.get(target.weight, ()):
            common = _common_rows(target, layer, other, other_layer)
            if common is not None:
                products[target.weight] = products[target.weight] + inner(*common).cpu()
    return products


def cosine(a: LowRank | LoRA, b: LowRank | LoRA) -> Tensor:
    """The cosine of the angle between two changes, -1..1; 0 when one of them is zero. Shape (), fp64."""
    return cosine_of(inner(a, b), energy(a), energy(b))


def cosine_of(product: Tensor, energy_a: Tensor, energy_b: Tensor) -> Tensor:
    """The cosine from an inner product and two energies."""
    both = (energy_a > 0) & (energy_b > 0)
    norms = torch.where(both, energy_a, 1).sqrt() * torch.where(both, energy_b, 1).sqrt()
    return torch.where(both, product / norms, 0 * product).clamp(-1, 1)


def spectrum(layer: LowRank) -> Tensor:
    """The singular values of the change in descending order; (k,), fp64, without gradient."""
    return directions(layer.up[None], layer.down[None]).values[0]


@dataclass(frozen=True, eq=False)
class Directions:
    """Singular directions of n changes `up @ down` of rank k or less, as linear combinations of the factors.

    The best approximation of rank r is `(up @ left[..., :r]) @ (right[:, :r] @ down)`; each side carries the root of
    the singular values. What is zero to rounding has zeros everywhere.
    """

    values: Tensor  # (n, k) falling
    left: Tensor  # (n, k, k)
    right: Tensor  # (n, k, k)


@torch.no_grad()
def directions(up: Tensor, down: Tensor) -> Directions:
    """Singular directions of n changes at once; `up` (n, d_out, k), `down` (n, k, d_in); fp64, without gradient.

    With down^T = Q R, the change's squares are the eigenvalues of R up^T up R^T. R and up^T up are had from k x k
    Gram matrices in fp64: on a CPU a QR of such tall matrices runs at a tenth of the speed of a product, and fp64
    tells directions apart down to `RESOLUTION`, which is the rounding of fp32 factors.
    """
    up, down = up.double(), down.double()
    gram = up.mT @ up
    scales, basis = torch.linalg.eigh(down @ down.mT)
    root = basis * scales.clamp(min=0).sqrt()[:, None]  # R^T
    squares, turns = torch.linalg.eigh(root.mT @ gram @ root)  # rising
    values, turns = squares.clamp(min=0).sqrt().flip(-1), turns.flip(-1)
    some = values > RESOLUTION * values[:, :1]
    values = values * some
    shrink = torch.where(some, values, 1).rsqrt() * some
    left = root @ turns * shrink[:, None]
    right = (shrink**3)[..., None] * (turns.mT @ root.mT @ gram)
    return Directions(values, left, right)


def _common_rows(a: Target, layer_a: LowRank, b: Target, layer_b: LowRank) -> tuple[LowRank, LowRank] | None:
    """Both layers on the rows of their weight that they have in common, if any."""
    whole = a.rows is None and b.rows is None
    if layer_a.d_in != layer_b.d_in or (whole and layer_a.d_out != layer_b.d_out):
        raise I2LError(
            f"the LoRAs are for different base models: a layer of {a.weight} is {layer_a.d_out}x{layer_a.d_in} in "
            f"one and {layer_b.d_out}x{layer_b.d_in} in the other; use LoRAs of one base model"
        )
    (start_a, length_a), (start_b, length_b) = a.rows or (0, layer_a.d_out), b.rows or (0, layer_b.d_out)
    start, end = max(start_a, start_b), min(start_a + length_a, start_b + length_b)
    if start >= end:
        return None
    return (
        LowRank(layer_a.down, layer_a.up[start - start_a : end - start_a]),
        LowRank(layer_b.down, layer_b.up[start - start_b : end - start_b]),
    )
