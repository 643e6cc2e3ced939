"""The text encoder of Infinity, flan-t5-xl, as a CLIP, so that the text nodes of ComfyUI work.

It is the host's own T5 class. The host's CLIPLoader takes flan-t5-xl for AuraFlow's encoder, which has the same sizes
but other tokens, and a table of distances in every block.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import comfy.ops
import comfy.sd
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders.sd3_clip import T5XXLTokenizer
from comfy.text_encoders.t5 import T5
from torch import Tensor

from ...checks import check_int, listed
from ...errors import I2LError
from .read import check_values, read_weights, shapes_of

LONGEST = 512  # tokens of a prompt, with the one that ends it

_NAME = "flan_t5_xl"
_TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_VOCABULARY = 32128
_BUCKETS = 32  # distances that the host's class tells apart
_LARGEST = {"d_model": 16384, "d_kv": 1024, "d_ff": 1 << 17, "num_heads": 512, "num_layers": 256}
_MOST = torch.finfo(torch.float16).max  # the host keeps text encoders in 16 bits
_BLOCK = re.compile(r"encoder\.block\.(\d{1,6})\.")
_DISTANCES = "layer.0.SelfAttention.relative_attention_bias.weight"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a T5 encoder of version 1.1, as the host's class names them: flan-t5-xl's are 2048, 64, 5120, 32, 24.
    Raises I2LError for sizes that are not believed."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            check_int(name, getattr(self, name), largest)

    def host_config(self) -> dict[str, Any]:
        return asdict(self) | {
            "vocab_size": _VOCABULARY,
            "dense_act_fn": "gelu_pytorch_tanh",
            "is_gated_act": True,
            "model_type": "t5",
        }


def text_weights(weights: Mapping[str, Tensor]) -> tuple[TextConfig, dict[str, Tensor]]:
    """Sizes and weights, under the names of the host's class, of a file: the encoder alone, or the first shard of the
    whole model, whose decoder is ignored. Raises I2LError, by name, unless the encoder is complete."""
    encoder = {name: tensor for name, tensor in weights.items() if _is_of_encoder(name)}
    tables = [name for name in _TABLES if name in weights]
    if not tables or not encoder:
        raise I2LError(
            "expected flan-t5-xl, but it has no "
            f"{'encoder' if tables else _TABLES[0]}; choose its encoder, or the first file of the whole model"
        )
    found = {_TABLES[0]: weights[tables[0]], **encoder}
    shapes = shapes_of(found)
    config = _config(shapes)
    expected = {name: tuple(tensor.shape) for name, tensor in _meta(config).state_dict().items()}
    if missing := sorted(set(expected) - set(shapes)):
        raise I2LError(
            f"the text encoder lacks {listed(missing)}; of a model in several files, choose the first one"
        )
    if unknown := sorted(set(shapes) - set(expected)):
        raise I2LError(f"expected flan-t5-xl, but it also has {listed(unknown)}; choose its file")
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise I2LError(f"expected {name} of shape {expected[name]}, got {shape}; download the file again")
    return config, found


def load_text(path: Path, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """A CLIP from a file of flan-t5-xl. Raises I2LError, with the file's name, as `text_weights`."""
    weights = read_weights(path, "flan-t5-xl", lambda name: name in _TABLES or _is_of_encoder(name))
    try:
        config, found = text_weights(weights)
    except I2LError as error:
        raise I2LError(f"{path.name}: {error}") from error
    check_values(path, found, _MOST)
    clip = build_clip(config, found, disable_dynamic)
    clip.patcher.cached_patcher_init = (load_text_patcher, (path,))  # for hooks and several GPUs
    return clip


def load_text_patcher(path: Path, disable_dynamic: bool = False) -> Any:
    return load_text(path, disable_dynamic).patcher


def build_clip(
    config: TextConfig,
    weights: dict[str, Tensor],
    disable_dynamic: bool = False,
    dtype: torch.dtype | None = None,
) -> comfy.sd.CLIP:
    """A CLIP from checked weights. `dtype`: what they are kept in, None for the host's choice; what is computed is
    float32. Its conditioning is (1, L, d_model) float32 with L the tokens of the prompt, without padding."""
    target = ClipTarget(_Tokeniser, _TextModel)
    target.params = {"config": config}
    return comfy.sd.CLIP(
        target,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        state_dict=[weights],
        model_options={} if dtype is None else {"dtype": dtype},
        disable_dynamic=disable_dynamic,
    )


class _T5Tokens(T5XXLTokenizer):
    """The host's T5 tokens: without padding, with an end."""

    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(tokenizer_data=dict(tokenizer_data or {}), min_length=1, max_length=LONGEST)


class _Tokeniser(SD1Tokenizer):
    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(tokenizer_data=dict(tokenizer_data or {}), name=_NAME, tokenizer=_T5Tokens)

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **options: Any
    ) -> dict[str, list]:
        """What does not fit into LONGEST tokens is left out, as the released program does it, and logged."""
        tokens = super().tokenize_with_weights(text, return_word_ids, **options)
        if len(sections := tokens[_NAME]) > 1:
            _log.warning(
                "this prompt has more than %d tokens, which Infinity does not read; its end is left out",
                LONGEST,
            )
            tokens[_NAME] = sections[:1]
        return tokens


class _TextEncoder(SDClipModel):
    def __init__(
        self,
        config: TextConfig,
        device: Any = None,
        dtype: torch.dtype | None = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=config.host_config(),
            model_class=cast(Any, T5),
            special_tokens={"end": 1, "pad": 0},
            model_options=dict(model_options or {}),
        )

    def load_sd(self, tensors: Mapping[str, Tensor]) -> Any:
        return self.transformer.load_state_dict(
            tensors, strict=True, assign=getattr(self, "can_assign_sd", False)
        )


class _TextModel(SD1ClipModel):
    def __init__(
        self,
        config: TextConfig,
        device: Any = None,
        dtype: torch.dtype | None = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=dict(model_options or {}),
            name=_NAME,
            clip_model=cast(Any, _TextEncoder),
            config=config,
        )


def _is_of_encoder(name: str) -> bool:
    return name.startswith("encoder.") and name not in _TABLES


def _meta(config: TextConfig) -> torch.nn.Module:
    return T5(config.host_config(), torch.float32, "meta", comfy.ops.manual_cast)


def _config(shapes: Mapping[str, tuple[int, ...]]) -> TextConfig:
    def shape(name: str) -> tuple[int, int]:
        found = shapes.get(name)
        if found is None or len(found) != 2:
            raise I2LError(
                f"expected flan-t5-xl, but {name} is {'missing' if found is None else found}; choose its file"
            )
        return found[0], found[1]

    blocks = {int(match[1]) for name in shapes if (match := _BLOCK.match(name))}
    rows, width = shape(_TABLES[0])
    first = "encoder.block.0."
    if f"encoder.block.1.{_DISTANCES}" in shapes:
        raise I2LError(
            "this is a T5 with distances in every block, AuraFlow's or UMT5; Infinity reads flan-t5-xl, so choose its "
            "file"
        )
    if rows != _VOCABULARY:
        raise I2LError(
            f"expected a text encoder of {_VOCABULARY} tokens, got {rows}; choose flan-t5-xl's file"
        )
    buckets, heads = shape(first + _DISTANCES)
    inner, _ = shape(first + "layer.0.SelfAttention.q.weight")
    hidden, _ = shape(first + "layer.1.DenseReluDense.wi_0.weight")
    if buckets != _BUCKETS or not heads or inner % heads:
        raise I2LError(
            f"expected {_BUCKETS} distances and heads that share {inner}, got {buckets} and {heads}; choose "
            "flan-t5-xl's file"
        )
    return TextConfig(width, inner // heads, hidden, heads, len(blocks))
