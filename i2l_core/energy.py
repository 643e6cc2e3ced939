"""Where in the model a LoRA acts: the energy of its change per block.

    energy = |up @ down|_F^2 = sum((up^T up) * (down down^T))

from the factors alone: k x k numbers per layer, never the dense change.
"""

from __future__ import annotations

from .lora import LoRA


def block_energies(lora: LoRA) -> dict[str, float]:
    """Block ("layers.3", "double_blocks.0", ...) -> energy of its layers, in the order of the model's names.

    Layers that overlap count each for itself.
    """
    energies: dict[str, float] = {}
    for target, layer in sorted(lora.layers.items(), key=lambda item: _order(item[0].weight)):
        down, up = layer.down.float(), layer.up.float()
        block = _block(target.weight)
        energies[block] = energies.get(block, 0.0) + float(((up.mT @ up) * (down @ down.mT)).sum())
    return energies


def _block(weight: str) -> str:
    """The name up to the first number in it: "layers.3.attention.qkv" is in "layers.3"."""
    parts = weight.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: number + 1])


def _order(weight: str) -> tuple[str, int]:
    name, _, number = _block(weight).rpartition(".")
    return (name, int(number)) if number.isdigit() else (number, -1)
