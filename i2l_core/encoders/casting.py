"""Replace the layers of a transformers module by layers of the host, which cast and offload their weights.

Float8 storage takes half of what bfloat16 takes:

    W ~ diag(s) Q        Q: (d_out, d_in) float8_e4m3fn, s: (d_out,) = max |row| / 448
    y = s * (Q x) + b    Q is cast to the type of x where it is used, layer by layer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn


class ScaledLinear(nn.Module):
    """A Linear with float8 weights and one scale per row. `operations` gives the Linear that casts them."""

    def __init__(self, linear: nn.Linear, operations: ModuleType | Any) -> None:
        super().__init__()
        self.quantised = operations.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        self.scale = nn.Parameter(torch.empty(linear.out_features, device="meta"), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.quantised(x) * self.scale
        return y if self.bias is None else y + self.bias


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(d_out, d_in) -> float8 of the same shape and its scales (d_out,) in the type of `weight`."""
    largest = weight.abs().amax(dim=1).float()
    scale = torch.where(largest > 0, largest / torch.finfo(FLOAT8).max, 1.0).to(weight.dtype)
    limit = torch.finfo(FLOAT8).max  # a scale rounded down would overflow to NaN
    return (weight / scale[:, None]).clamp(-limit, limit).to(FLOAT8), scale


def in_float8(name: str, weight: Tensor) -> dict[str, Tensor]:
    """The weight of a Linear as the entries of a ScaledLinear in a state dict."""
    quantised, scale = quantise(weight)
    layer = name.removesuffix(".weight")
    return {f"{layer}.quantised.weight": quantised, f"{layer}.scale": scale}


def linear_weights(model: nn.Module) -> set[str]:
    """Names of the weights of every plain Linear: nearly all of a transformer."""
    return {f"{name}.weight" for name, layer in model.named_modules() if type(layer) is nn.Linear}


def replace_layers(model: nn.Module, operations: ModuleType | Any, float8: bool = False) -> list[nn.Module]:
    """Replace the layers of torch by those of `operations`, without weights, on the meta device.

    `float8`: Linears become ScaledLinear. Returns the modules that were not replaced: their own parameters and buffers
    must be moved with `follow`.
    """
    left = [model]
    for name, child in list(model.named_children()):
        if float8 and type(child) is nn.Linear:
            scaled = ScaledLinear(child, operations)
            setattr(model, name, scaled)
            left.append(scaled)
        elif type(child) in _SAME:
            setattr(model, name, _SAME[type(child)](operations, child))
        else:
            left += replace_layers(child, operations, float8)
    return left


def follow(modules: list[nn.Module], device: torch.device) -> None:
    """Move the parameters and buffers outside of casting layers to the device of the computation."""
    for module in modules:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.device != device:
                tensor.data = tensor.data.to(device)


# torch's layer -> the same layer of `operations`, on the meta device
_SAME: Mapping[type[nn.Module], Callable[[Any, Any], nn.Module]] = {
    nn.Linear: lambda operations, layer: operations.Linear(
        layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
    ),
    nn.Conv2d: lambda operations, layer: operations.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, device="meta"
    ),
    nn.LayerNorm: lambda operations, layer: operations.LayerNorm(
        layer.normalized_shape, layer.eps, device="meta"
    ),
    nn.Embedding: lambda operations, layer: operations.Embedding(
        layer.num_embeddings, layer.embedding_dim, device="meta"
    ),
}
