"""What comparisons with networks of other libraries share: their weights in the host, by our tables, and LoRAs for
both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from i2l.i2l_core.base_models import ARCHITECTURES, AdaptedLayer, Architecture
from i2l.i2l_core.lora import LoRA, LowRank
from i2l.i2l_core.lora_files.keys import keys_of
from i2l.i2l_core.lora_files.names import find
from i2l.i2l_core.lora_files.tensors import from_state_dict

LIMIT = 3e-5  # for errors in fp32, where leaving out any layer that has a say changes 9e-3 of a LoRA's effect or more

Z_IMAGE_SIZES: dict[str, Any] = {  # of a width at which the libraries agree on that of the MLP
    "dim": 384,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": 32,
}
Z_IMAGE_NORMS = {r"\.norm_(q|k)\.": r".\1_norm."}  # regex -> the host's name
FLUX2_NORMS = {
    r"^single_transformer_blocks\.(\d+)\.attn\.norm": r"single_blocks.\1.norm",
    r"^transformer_blocks\.(\d+)\.attn\.norm_added": r"double_blocks.\1.txt_attn.norm",
    r"^transformer_blocks\.(\d+)\.attn\.norm": r"double_blocks.\1.img_attn.norm",
    r"norm_q": "norm.query_norm",
    r"norm_k": "norm.key_norm",
}
FLUX2_FULL_SIZES: dict[str, dict[str, Any]] = {  # base model -> arguments of both libraries' classes
    "flux2-klein-4b": {
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    "flux2-klein-9b": {
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12288,
        "guidance_embeds": False,
    },
    "flux2-dev": {},
}


@dataclass(frozen=True)
class Pair:
    """One network in both libraries, and the same inputs for both."""

    theirs: nn.Module
    call: Callable[[], Tensor]  # their output in the host's shape and sign
    patcher: Any
    x: Tensor
    sigma: Tensor
    conditioning: dict[str, Any]
    renames: dict[str, str] = field(default_factory=dict)  # see `take_weights`


@dataclass(frozen=True)
class Answers:
    """What their network gives, and what it gives with a LoRA of theirs on every Linear."""

    pair: Pair
    layers: dict[str, LowRank]
    plain: Tensor
    adapted: Tensor

    @classmethod
    def ask(cls, pair: Pair, adapt: Callable[[nn.Module, Mapping[str, LowRank]], None]) -> Answers:
        """With random weights, the same in both. `adapt` puts a LoRA on their network."""
        randomise(pair.theirs)
        take_weights(pair.patcher, pair.theirs, pair.renames)
        layers = random_layers(linears(pair.theirs))
        with torch.no_grad():
            plain = pair.call()
            adapt(pair.theirs, layers)
            return cls(pair, layers, plain, pair.call())

    def known(self) -> dict[str, LowRank]:
        """The LoRA without layers that the host does not have."""
        architecture, _ = architecture_and_weights(self.pair.patcher)
        return {name: layer for name, layer in self.layers.items() if not is_absent(architecture, name)}

    def places(self) -> set[str]:
        """The names of all layers that our tables find in the host's network."""
        architecture, weights = architecture_and_weights(self.pair.patcher)
        return {slot.name for slot in architecture.adapted_layers(weights)}

    def plain_error(self) -> float:
        """How far the host's output is from theirs, as a share of theirs."""
        actual = output(self.pair.patcher, self.pair)
        return _norm(actual - self.plain) / _norm(self.plain)

    def error(self, way: str) -> float:
        """How far the host's output with the LoRA is from theirs, as a share of what the LoRA changes."""
        patcher, lora = self.pair.patcher, ours(self.pair.patcher, self.known())
        ways = {"merged": merged_output, "live": live_output}
        actual = ways[way](patcher, lora, self.pair)
        return _norm(actual - self.adapted) / _norm(self.plain - self.adapted)


def flux2_ids(height: int, width: int, words: int) -> tuple[Tensor, Tensor]:
    """Positions of the tokens of the picture and of the text, (tokens, 4)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    none = torch.zeros(height * width, dtype=torch.long)
    picture = torch.stack([none, rows.flatten(), columns.flatten(), none], -1)
    return picture, torch.stack([torch.arange(words) * (axis == 3) for axis in range(4)], -1)


def architecture_and_weights(patcher) -> tuple[Architecture, dict[str, tuple[int, ...]]]:
    from i2l.i2l_core.host.patch import weights_of

    weights = weights_of(patcher)
    return next(architecture for architecture in ARCHITECTURES if architecture.matches(weights)), weights


def linears(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (d_out, d_in) of every Linear."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    }


def randomise(network: nn.Module, seed: int = 1) -> None:
    """Random weights under which every layer has a say: with norms near 2, attention chooses."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=gen))
            weight.mul_(weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.1)
            if weight.ndim == 1 and name.endswith("weight"):
                weight.add_(2.0)


def take_weights(patcher, theirs: nn.Module, renames: Mapping[str, str]) -> None:
    """Load the weights of `theirs` into a MODEL: of layers by our tables, of all else by `renames` (regex -> name).

    Every parameter of both is used, once; but for those of theirs that `renames` leaves without a name.
    """
    architecture, weights = architecture_and_weights(patcher)
    left = dict(theirs.state_dict())
    found: dict[str, Tensor] = {}
    by_weight: dict[str, list[AdaptedLayer]] = {}
    for slot in sorted(architecture.adapted_layers(weights), key=lambda slot: slot.target):
        by_weight.setdefault(slot.target.weight, []).append(slot)
    for weight, slots in by_weight.items():
        for kind in ("weight", "bias"):
            names = [(slot, f"{slot.name}.{kind}") for slot in slots]
            parts = [_host_order(slot, left.pop(name)) for slot, name in names if name in left]
            if parts:
                found[f"{weight}.{kind}"] = torch.cat(parts)
    for name, tensor in left.items():
        for pattern, host in renames.items():
            name = re.sub(pattern, host, name)
        assert name not in found
        if name:
            found[name] = tensor
    # not the marks of the host, such as __index_timestep_zero__
    assert found.keys() == {name for name in weights if not name.startswith("__")}
    patcher.model.diffusion_model.load_state_dict(found, strict=False)  # it may have buffers


def _host_order(slot: AdaptedLayer, tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1]) if slot.swapped else tensor


def random_layers(sizes: Mapping[str, tuple[int, int]], rank: int = 4, seed: int = 7) -> dict[str, LowRank]:
    """Name -> a random layer for a Linear of (d_out, d_in), that changes it by about a third."""
    gen = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(rank, d_in, generator=gen) / d_in**0.5,
            torch.randn(d_out, rank, generator=gen) / (3 * rank**0.5),
        )
        for name, (d_out, d_in) in sizes.items()
    }


def ours(patcher, layers: Mapping[str, LowRank]) -> LoRA:
    """The same LoRA at the host's weights, as it is read under their names."""
    architecture, _ = architecture_and_weights(patcher)
    tensors = {}
    for name, layer in layers.items():
        down, up, _ = keys_of("DiffSynth", name)
        tensors |= {down: layer.down, up: layer.up}
    return from_state_dict(tensors, architecture=architecture)


def is_absent(architecture: Architecture, name: str) -> bool:
    """Whether only the reference has a layer of this name, not the host."""
    place = find(architecture, name)
    return place is not None and place.absent


def output(patcher, pair: Pair) -> Tensor:
    """What the diffusion model of a MODEL gives, as a sampler would call it; live LoRAs act."""
    model, x = patcher.model, pair.x
    if hasattr(model.diffusion_model, "clear_kv_cache"):
        model.diffusion_model.clear_kv_cache()
    conds = model.extra_conds(noise=x, device=x.device, **pair.conditioning)
    inputs = {key: cond.process_cond(batch_size=x.shape[0]).cond for key, cond in conds.items()}
    seen: list[Tensor] = []
    handle = model.diffusion_model.register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        with torch.no_grad():
            model.apply_model(x, pair.sigma, **inputs, transformer_options={"wrappers": patcher.wrappers})
    finally:
        handle.remove()
    return seen[0]


def merged_output(patcher, lora: LoRA, pair: Pair) -> Tensor:
    from i2l.i2l_core.host.patch import apply_merged

    patched = apply_merged(patcher, lora, 1.0)
    patched.patch_model(device_to=torch.device("cpu"))
    try:
        return output(patched, pair)
    finally:
        patched.unpatch_model(device_to=torch.device("cpu"))


def live_output(patcher, lora: LoRA, pair: Pair) -> Tensor:
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA

    return output(attach(patcher, LiveLoRA(lora)), pair)


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())
