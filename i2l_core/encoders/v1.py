"""The two frozen encoders of i2L version 1, one vector per picture, from the files that are published for it.

    x = [ SigLIP2(picture), DINOv3(picture) ]        (N, 1536 + 4096), nothing normalised in between

SigLIP2 giant-384 (arXiv 2502.14786): the attention-pool head, at 384x384.
DINOv3-7B (arXiv 2508.10104): the CLS token after the last norm, at 224x224.
Both see the middle of the picture (encoders/cover.py), resized once more in bytes (SigLIP2) or floats (DINOv3).

A file is recognised by its names and shapes alone; what these cannot say is fixed here per kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import I2LError
from ..files.kinds import describe_tensors
from ..files.safetensors import check_dtypes, check_finite, check_shapes, open_safetensors, shapes_and_dtypes
from .casting import FLOAT8, follow, in_float8, linear_weights, replace_layers
from .cover import cover
from .siglip import build_siglip

MODEL_ID = "DiffSynth-Studio/General-Image-Encoders"
SEEN = 1024  # side in pixels of the square that both encoders read

SIGLIP2 = "SigLIP2"
DINOV3 = "DINOv3"


@dataclass(frozen=True)
class EncoderKind:
    """What all sizes of an encoder share."""

    file: str  # in the repository MODEL_ID
    width: int  # width of its embedding
    mark: str  # a tensor that only this kind has
    block: str  # how the names of its blocks start
    mlp: str  # the tensor of a block that tells the width of its MLP
    mlp_layers: int
    patches: str  # the tensor that tells width and patch size
    head_width: int  # of an attention head
    mean: tuple[float, float, float]  # per channel, of pixels 0..1
    std: tuple[float, float, float]
    resizes_bytes: bool  # to its own size; else floats 0..1


KINDS: Mapping[str, EncoderKind] = MappingProxyType(
    {
        SIGLIP2: EncoderKind(
            file="SigLIP2-G384/model.safetensors",
            width=1536,
            mark="head.probe",
            block="encoder.layers.",
            mlp="mlp.fc1.weight",
            mlp_layers=2,
            patches="embeddings.patch_embedding.weight",
            head_width=96,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resizes_bytes=True,
        ),
        DINOV3: EncoderKind(
            file="DINOv3-7B/model.safetensors",
            width=4096,
            mark="embeddings.register_tokens",
            block="layer.",
            mlp="mlp.gate_proj.weight",
            mlp_layers=3,
            patches="embeddings.patch_embeddings.weight",
            head_width=128,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            resizes_bytes=False,
        ),
    }
)
_DINOV3_SIDE = 224  # nothing in its file depends on the size of the picture
_POSITIONS = "embeddings.position_embedding.weight"


@dataclass(frozen=True)
class PooledConfig:
    """Sizes of one encoder, read from the shapes of its file."""

    kind: str  # SIGLIP2 or DINOV3
    width: int  # of tokens and of the embedding
    blocks: int
    mlp: int  # width of a block's MLP
    patch: int  # side in pixels
    side: int  # of the square picture, in pixels
    registers: int = 0  # DINOV3: register tokens

    @property
    def heads(self) -> int:
        return self.width // KINDS[self.kind].head_width

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2 + (1 + self.registers if self.kind == DINOV3 else 0)

    @property
    def weights(self) -> int:
        """Numbers in the Linears of its blocks: nearly all that it has."""
        return self.blocks * self.width * (4 * self.width + KINDS[self.kind].mlp_layers * self.mlp)

    def __str__(self) -> str:
        return f"{self.kind} (width {self.width}, {self.blocks} blocks)"


class PooledEncoder(nn.Module):
    """Pictures -> one vector each. `model` is the transformers module.

    `operations`: torch.nn, or a namespace of the host's whose layers cast and offload; with `float8` it must cast.
    Then the weights are on the meta device until a state dict is assigned.
    """

    def __init__(
        self,
        config: PooledConfig,
        device: torch.device | str | None = None,
        operations: ModuleType | Any = nn,
        float8: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = _BUILD[config.kind](config, torch.device(device or "cpu")).requires_grad_(False)
        self._rest = [] if operations is nn else replace_layers(self.model, operations, float8)

    def encode(self, pictures: Sequence[Tensor]) -> Tensor:
        """(N, width) of pictures (H, W, 3), floats 0..1, of any sizes; one by one, so that none changes another."""
        return torch.cat([self(self.preprocess(picture)[None]) for picture in pictures])

    def preprocess(self, picture: Tensor) -> Tensor:
        """(H, W, 3) floats 0..1 -> normalised (3, side, side) float32, on the CPU."""
        kind, size = KINDS[self.config.kind], (self.config.side, self.config.side)
        x = cover(picture, SEEN)[None]
        # bytes or floats, as the reference: in bfloat16 the last bit of a pixel already tells
        levels = 255 if kind.resizes_bytes else 1
        x = x if kind.resizes_bytes else x * (1 / 255)
        x = F.interpolate(x, size, mode="bilinear", antialias=True)[0]
        mean, std = (torch.tensor(values)[:, None, None] * levels for values in (kind.mean, kind.std))
        return (x - mean) / std

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocessed pictures (B, 3, side, side) -> (B, width), in the encoder's type, where `pixels` is."""
        follow(self._rest, pixels.device)
        return self.model(pixels).pooler_output

    def file_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of its file."""
        return {_file_name(name): tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> PooledConfig | None:
    """Which encoder has tensors of these names and shapes; None for anything else."""
    for name, kind in KINDS.items():
        patches = shapes.get(kind.patches, ())
        mlp = shapes.get(f"{kind.block}0.{kind.mlp}", ())
        if kind.mark not in shapes or len(patches) != 4 or len(mlp) != 2:
            continue
        width, patch = patches[0], patches[2]
        blocks = {key.removeprefix(kind.block).split(".")[0] for key in shapes if key.startswith(kind.block)}
        side, registers = _DINOV3_SIDE, 0
        if name == SIGLIP2:
            side = math.isqrt(shapes.get(_POSITIONS, (0,))[0]) * patch
        else:
            registers = math.prod(shapes[kind.mark][1:2])
        if width > 0 and width % kind.head_width == 0 and 0 < patch <= side:
            return PooledConfig(name, width, len(blocks), mlp[0], patch, side, registers)
    return None


def peek_pooled(path: Path) -> PooledConfig | None:
    """Which encoder a file holds, from its header; None when it holds none or cannot be read."""
    try:
        with open_safetensors(path) as file:
            return recognise(shapes_and_dtypes(file)[0])
    except I2LError:
        return None


def load_pooled(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    operations: ModuleType | Any = nn,
    stored: torch.dtype | None = None,
) -> PooledEncoder:
    """Read an encoder file: on the CPU, frozen, to compute in `dtype`.

    `stored`: the type its Linears are kept in, FLOAT8 among them, where `operations` casts; None: `dtype`. Weights
    that the file has in the type they are kept in stay mapped to it: they take no memory until they are used.
    `operations` as for PooledEncoder. Raises I2LError naming the file when it is damaged, is something else,
    does not hold exactly the tensors of its kind, or holds NaN or infinity.
    """
    with open_safetensors(Path(path), "an image encoder") as file:
        shapes, dtypes = shapes_and_dtypes(file)
        config = recognise(shapes)
        if config is None:
            raise I2LError(
                f"expected a SigLIP2 or DINOv3 image encoder, but {describe_tensors(shapes, file.metadata() or {})}"
            )
        encoder = PooledEncoder(config, device="meta")
        check_shapes(shapes, encoder.file_shapes(), f"of {config}")
        for name, kind in dtypes.items():
            check_dtypes([kind], name)
        linears = linear_weights(encoder.model)
        tensors = {}
        for name in encoder.model.state_dict():
            tensor = file.get_tensor(_file_name(name))
            check_finite(_file_name(name), tensor)
            kept = stored if stored and name in linears else dtype
            tensors |= {name: tensor.to(kept)} if kept != FLOAT8 else in_float8(name, tensor.to(dtype))
        if operations is not nn:
            encoder = PooledEncoder(config, "meta", operations, stored == FLOAT8)
        encoder.model.load_state_dict(tensors, strict=True, assign=True)
    for buffer in encoder.model.buffers():  # the reference rounds the frequencies of DINOv3 as well
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
    return encoder.requires_grad_(False).eval()


def _file_name(name: str) -> str:
    """transformers 5 has the blocks of DINOv3 in a module more than its files."""
    return name.removeprefix("model.")


def _siglip2(config: PooledConfig, device: torch.device) -> Any:
    sizes = {
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.blocks,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": config.side,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    return build_siglip(sizes, device)


def _dinov3(config: PooledConfig, device: torch.device) -> Any:
    import transformers  # slow: only when an encoder is needed

    if not hasattr(transformers, "DINOv3ViTModel"):
        raise I2LError(
            f"transformers {transformers.__version__} has no DINOv3; update it: pip install -U transformers"
        )
    sizes: dict[str, Any] = {
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.blocks,
        "num_attention_heads": config.heads,
        "num_register_tokens": config.registers,
        "patch_size": config.patch,
        "image_size": config.side,
        "hidden_act": "silu",
        "use_gated_mlp": True,
        "query_bias": False,
        "key_bias": False,
        "value_bias": False,
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "attn_implementation": "sdpa",
    }
    with device:
        made = transformers.DINOv3ViTConfig(**sizes)
        model = transformers.DINOv3ViTModel(made)
    if device.type == "meta":  # its one buffer is always real, as no file brings it
        model.rope_embeddings = type(model.rope_embeddings)(made)
    return model.eval()


_BUILD = MappingProxyType({SIGLIP2: _siglip2, DINOV3: _dinov3})
