"""Templates of a whole FLUX.2, run as the host's own Flux class under the host's memory management."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.ldm.flux.model
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...checks import listed
from ...errors import I2LError
from ...files.safetensors import check_finite, is_copied, open_safetensors, read_tensor
from ...kv_caches.cache import KeysValues, KVCache
from ...kv_caches.dit import REFERENCE_INDEX, DitTemplate, host_name

_DTYPES = {"F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_PADDED_TEXT = {
    7680: 512
}  # width of a prompt of klein 4B -> tokens that the host's FLUX.2 pads it to, with zeros before
_ACTIVATIONS = 24  # numbers in memory at once for each number of the tokens, about: qkv and the gated MLP


def load_network(path: Path, template: DitTemplate, channels: int, dtype: torch.dtype) -> ModelPatcher:
    """The network of a template as a model of the host, for latents of `channels`; not loaded to the GPU yet.

    It keeps the types of the file, 8 bit floats too, and computes in `dtype`. Raises I2LError naming the file and the
    tensor for NaN, other types, and a VAE that does not fit.
    """
    config = template.host_config(channels)
    network = comfy.ldm.flux.model.Flux(
        **config, final_layer=False, dtype=dtype, device="meta", operations=comfy.ops.manual_cast
    )
    network.final_layer = _NoOutput(template.patch)
    tensors = {}
    with open_safetensors(path, "a template") as file:
        copied = is_copied(path)
        for name in file.keys():
            host = host_name(name)
            if host is None:
                continue
            kind = file.get_slice(name).get_dtype()
            if kind not in _DTYPES:
                raise I2LError(f"{name} is of the type {kind}, expected one of {listed(sorted(_DTYPES))}")
            tensor = read_tensor(file, name) if copied else file.get_tensor(name)
            check_finite(name, tensor.to(torch.bfloat16) if tensor.dtype.itemsize == 1 else tensor)
            # norms are read as they are by the host's kernels; Linears are cast
            tensors[host] = tensor.to(dtype) if tensor.ndim == 1 else tensor
    network.load_state_dict(tensors, strict=True, assign=True)
    network.requires_grad_(False)
    return comfy.model_patcher.CoreModelPatcher(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def run_network(
    held: ModelPatcher,
    template: DitTemplate,
    latents: Sequence[Tensor],
    text: Tensor,
    dtype: torch.dtype,
    made_by: str,
    base_model: str = "",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> KVCache:
    """The keys and values that the network gives for pictures and a prompt, on the CPU.

    `latents`: (1, C, h, w) each, as the VAE gives them; the first stands at 10, the next at 20, ... `text`: (1, T, D).
    May be cancelled between blocks. Raises I2LError for a prompt of another width.
    """
    if text.ndim != 3 or text.shape[-1] != template.text:
        raise I2LError(
            f"{made_by}: expected a prompt of width {template.text}, got {tuple(text.shape)}; use the text encoder of "
            "FLUX.2 klein 4B"
        )
    text = text[:1]
    if (wanted := _PADDED_TEXT.get(template.text, 0)) > text.shape[1]:
        text = torch.nn.functional.pad(text, (0, 0, wanted - text.shape[1], 0))
    tokens = text.shape[1] + sum(x.shape[-1] * x.shape[-2] * x.shape[1] for x in latents) // template.patch
    size = torch.empty(0, dtype=dtype).element_size()
    blocks = template.double + template.single
    needed = tokens * template.hidden * size * (_ACTIVATIONS + 2 * blocks)
    comfy.model_management.load_models_gpu([held], memory_required=needed)
    device = held.load_device
    found: dict[str, KeysValues] = {}

    def keep(attention: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any) -> Tensor:
        """After rotation: (1, heads, S, head_dim)."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        place = options["transformer_options"]
        name = f"{place['block_type']}_{place['block_index']}"
        found[name] = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
        progress(len(found), blocks)
        return attention(q, k, v, heads, **options)

    options = {"rope_options": {"shift_t": REFERENCE_INDEX}, "optimized_attention_override": keep}
    pictures = [latent.to(device, dtype) for latent in latents]
    with torch.inference_mode():
        held.model(
            pictures[0],
            torch.zeros(1, device=device, dtype=dtype),
            text.to(device, dtype),
            ref_latents=pictures[1:] or None,
            ref_latents_method="index",
            transformer_options=options,
        )
    cache = {name: (k.cpu().clone(), v.cpu().clone()) for name, (k, v) in found.items()}
    return KVCache(cache, made_by, base_model)


class _NoOutput(torch.nn.Module):
    """In place of the network's output, which nobody looks at: (B, S, `width`) zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, vec: Any, modulation_dims: Any = None) -> Tensor:
        return x.new_zeros(*x.shape[:2], self.width)
