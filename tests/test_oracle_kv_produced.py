"""Caches that templates give, against DiffSynth's TemplatePipeline running small programs written here: a value, a
static cache, and a whole network (DiffSynth's own Flux2DiT, whose attention is listened to)."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kv_templates import dit_file, value_file
from oracles import LIMIT
from safetensors.torch import save_file
from torch import Tensor

from i2l.i2l_core.kv_caches.cache import KVCache
from i2l.i2l_core.kv_caches.dit import DitTemplate
from i2l.i2l_core.kv_caches.kinds import StaticTemplate, recognise_template
from i2l.i2l_core.kv_caches.static import load_cache
from i2l.i2l_core.kv_caches.value import ValueTemplate

pytestmark = pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated")

VALUE = """
import math
import torch
from torch import nn

class Line(nn.Module):
    def __init__(self, waves, wide, tokens):
        super().__init__()
        self.prefer_value_embedder = nn.Sequential(nn.Linear(waves, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.positional_embedding = nn.Parameter(torch.zeros(tokens, wide))

    def forward(self, value):
        waves = self.prefer_value_embedder[0].in_features
        rates = torch.exp(torch.arange(waves // 2).float() * -math.log(10000) / (waves // 2))
        angles = (value * FACTOR).float() * rates
        seen = torch.cat([torch.cos(angles), torch.sin(angles)]).to(value.dtype)
        return self.prefer_value_embedder(seen[None]) + self.positional_embedding

class Values(nn.Module):
    def __init__(self, blocks, waves, wide, tokens, heads):
        super().__init__()
        self.heads = heads
        lines = lambda: nn.ModuleDict({block: Line(waves, wide, tokens) for block in blocks})
        self.proj_k, self.proj_v = lines(), lines()

    def process_inputs(self, pipe, scale, **kwargs):
        return {"number": torch.tensor([scale]).to(pipe.torch_dtype)}

    def forward(self, number, **kwargs):
        split = lambda line: line(number).unflatten(-1, (self.heads, -1))[None]
        return {"kv_cache": {b: (split(self.proj_k[b]), split(self.proj_v[b])) for b in self.proj_k}}

TEMPLATE_MODEL = Values
TEMPLATE_MODEL_PATH = "model.safetensors"
"""

STATIC = """
import pathlib
import torch
from safetensors.torch import load_file

class Static(torch.nn.Module):
    def process_inputs(self, **kwargs):
        return {}

    def forward(self, **kwargs):
        read = load_file(pathlib.Path(__file__).with_name("model.safetensors"))
        blocks = sorted({name.rpartition(".")[0] for name in read})
        return {"kv_cache": {block: (read[block + ".k"], read[block + ".v"]) for block in blocks}}

TEMPLATE_MODEL = Static
"""

NETWORK = """
import pathlib
import torch
from diffsynth.models import flux2_dit
from safetensors.torch import load_file

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        tensors = load_file(pathlib.Path(__file__).with_name("model.safetensors"))
        wide, self.patch = tensors["img_embedder.weight"].shape
        (head,) = tensors["single_transformer_blocks.0.norm_q.weight"].shape
        self.network = flux2_dit.Flux2DiT(
            in_channels=self.patch, num_layers=DOUBLE, num_single_layers=SINGLE, attention_head_dim=head,
            num_attention_heads=wide // head, joint_attention_dim=tensors["txt_embedder.weight"].shape[1],
            axes_dims_rope=(head // 4,) * 4, guidance_embeds=False,
        )
        self.network.load_state_dict(dict(self.named(tensors)))

    def named(self, tensors):
        whole = {"img_embedder": "x_embedder", "txt_embedder": "context_embedder",
                 "time_guidance_embed.timestep_embedder.0": "time_guidance_embed.timestep_embedder.linear_1",
                 "time_guidance_embed.timestep_embedder.2": "time_guidance_embed.timestep_embedder.linear_2"}
        inside = {"img_norm_q": "attn.norm_q", "img_norm_k": "attn.norm_k", "txt_norm_q": "attn.norm_added_q",
                  "txt_norm_k": "attn.norm_added_k", "img_to_out": "attn.to_out.0", "txt_to_out": "attn.to_add_out",
                  "img_ff.linear_in": "ff.linear_in", "img_ff.linear_out": "ff.linear_out",
                  "txt_ff.linear_in": "ff_context.linear_in", "txt_ff.linear_out": "ff_context.linear_out"}
        apart = {"img_to_qkv": ("to_q", "to_k", "to_v"), "txt_to_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}
        for name, tensor in tensors.items():
            name = name.removesuffix(".weight")
            head, _, rest = name.partition("transformer_blocks.")
            index, _, layer = rest.partition(".")
            place = f"{head}transformer_blocks.{index}."
            if not rest:
                yield whole.get(name, name) + ".weight", tensor
            elif head == "single_":
                yield f"{place}attn.{layer}.weight", tensor
            elif layer in apart:
                for part, rows in zip(apart[layer], tensor.chunk(3)):
                    yield f"{place}attn.{part}.weight", rows
            else:
                yield f"{place}{inside[layer]}.weight", tensor

    def process_inputs(self, pipe, image, prompt, **kwargs):
        pictures = image if isinstance(image, list) else [image]
        unit = next(u for u in pipe.units if type(u).__name__ == "Flux2Unit_Qwen3PromptEmbedder")
        return {"latents": [pipe.vae.encode(pipe.preprocess_image(picture)) for picture in pictures],
                "text": unit.process(pipe, prompt)["prompt_embeds"]}

    def forward(self, latents, text, **kwargs):
        heard, real = [], flux2_dit.attention_forward
        def listen(q, k, v, *args, **options):
            heard.append((k, v))
            return real(q, k, v, *args, **options)
        ids = [torch.cartesian_prod(torch.tensor([10 * (i + 1)]), torch.arange(x.shape[2]), torch.arange(x.shape[3]),
                                    torch.arange(1)) for i, x in enumerate(latents)]
        words = torch.arange(text.shape[1])[:, None] * torch.tensor([0, 0, 0, 1])
        flux2_dit.attention_forward = listen
        try:
            self.network(torch.cat([x.flatten(2).transpose(1, 2) for x in latents], 1), text,
                         torch.zeros(1), torch.cat(ids), words)
        finally:
            flux2_dit.attention_forward = real
        names = [f"double_{i}" for i in range(DOUBLE)] + [f"single_{i}" for i in range(SINGLE)]
        return {"kv_cache": dict(zip(names, heard, strict=True))}

TEMPLATE_MODEL = Network
"""


class Flux2Unit_Qwen3PromptEmbedder:  # programs look for a unit of this name
    def process(self, pipe: Any, prompt: Tensor) -> dict[str, Tensor]:
        return {"prompt_embeds": prompt}


PIPE = SimpleNamespace(
    torch_dtype=torch.float32,
    device="cpu",
    preprocess_image=lambda picture: picture,
    vae=SimpleNamespace(encode=lambda picture: picture),
    units=[Flux2Unit_Qwen3PromptEmbedder()],
    load_models_to_device=lambda names: None,
)


def theirs(program: str, folder: Path, inputs: dict[str, Any], dtype: torch.dtype = torch.float32):
    """What DiffSynth makes of the weights in the folder: block -> (K, V)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("diffsynth.diffusion.template")
        from diffsynth.core import ModelConfig
    (folder / "model.py").write_text(program)
    pipe = SimpleNamespace(**{**vars(PIPE), "torch_dtype": dtype})
    pipeline = module.TemplatePipeline(dtype, "cpu", [ModelConfig(path=str(folder))])
    with torch.no_grad():
        return pipeline.call_single_side(pipe, [inputs])["kv_cache"]


def equal(found: KVCache, expected: dict[str, tuple[Tensor, Tensor]]) -> None:
    assert found.blocks.keys() == expected.keys()
    for name, pair in expected.items():
        for one, two in zip(found.blocks[name], pair, strict=True):
            assert one.dtype == two.dtype
            # not to the bit: DiffSynth multiplies where the file is mapped, and sums depend on the alignment
            torch.testing.assert_close(
                one, two, rtol=1e-5 if one.dtype == torch.float32 else 1.6e-2, atol=2e-6
            )


def error(found: KVCache, expected: dict[str, tuple[Tensor, Tensor]]) -> float:
    """The largest of any block's keys or values, as a share of them."""
    assert found.blocks.keys() == expected.keys()
    return max(
        float((one - two).double().norm() / two.double().norm())
        for name, pair in expected.items()
        for one, two in zip(found.blocks[name], pair, strict=True)
    )


@pytest.mark.parametrize("factor", [1000.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", [0.0, 0.3, 0.7, 45.0])
def test_a_value_is_theirs(tmp_path: Path, number: float, dtype: torch.dtype, factor: float):
    path = value_file(tmp_path / "model.safetensors", dtype)
    kind = recognise_template(path)
    assert isinstance(kind, ValueTemplate)
    sizes = {"blocks": list(kind.blocks), "waves": 16, "wide": 256, "tokens": 9, "heads": 2}
    program = VALUE.replace("FACTOR", repr(factor)) + f"TEMPLATE_MODEL_CONFIG = {sizes}\n"
    expected = theirs(program, tmp_path, {"scale": number}, dtype)
    equal(kind.make([number], factor, "t"), expected)
    other = kind.make([number + 0.25], factor, "t")
    assert error(KVCache({n: _float(p) for n, p in other.blocks.items()}), _floats(expected)) > 100 * LIMIT


def _float(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return pair[0].float(), pair[1].float()


def _floats(blocks: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: _float(pair) for name, pair in blocks.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_static_cache_to_the_bit(tmp_path: Path, dtype: torch.dtype):
    names = [f"{block}.{which}" for block in ("double_0", "single_0", "single_1") for which in "kv"]
    tensors = {name: torch.randn(1, 11, 2, 128).to(dtype) for name in names}
    save_file(tensors, tmp_path / "model.safetensors")
    assert isinstance(recognise_template(tmp_path / "model.safetensors"), StaticTemplate)
    equal(load_cache(tmp_path / "model.safetensors"), theirs(STATIC, tmp_path, {}, dtype))


SIZES = {
    "heads of 128": DitTemplate(256, 128, 768, 2, 2, 128, 48),
    "heads of 32": DitTemplate(160, 32, 480, 1, 3, 128, 40),
}


@pytest.mark.parametrize("pictures", [((4, 6),), ((3, 5), (6, 2))], ids=["one", "two"])
@pytest.mark.parametrize("size", SIZES)
def test_a_whole_network(host, tmp_path: Path, size: str, pictures: tuple[tuple[int, int], ...]):
    from i2l.i2l_core.host.kv_caches.dit import load_network, run_network

    template = SIZES[size]
    path = dit_file(tmp_path / "model.safetensors", template)
    assert recognise_template(path) == template
    gen = torch.Generator().manual_seed(5)
    latents = [torch.randn(1, 128, *sides, generator=gen) for sides in pictures]
    text = torch.randn(1, 20, template.text, generator=gen)
    program = NETWORK.replace("DOUBLE", str(template.double)).replace("SINGLE", str(template.single))
    expected = theirs(program, tmp_path, {"image": latents, "prompt": text})
    held = load_network(path, template, 128, torch.float32)

    def made(seen: list[Tensor], words: Tensor) -> KVCache:
        return run_network(held, template, seen, words, torch.float32, "t")

    assert error(made(latents, text), expected) <= LIMIT
    assert error(made(latents, text.flip(1)), expected) > 100 * LIMIT
    turned = [latents[0].transpose(2, 3), *latents[1:]]
    assert error(made(turned, text), expected) > 100 * LIMIT
    if len(latents) > 1:
        tokens = [x.shape[2] * x.shape[3] for x in latents]
        found = made(latents[::-1], text)  # the same tokens at the coordinates of each other's picture
        order = [*range(20), *range(20 + tokens[1], 20 + sum(tokens)), *range(20, 20 + tokens[1])]
        back = {name: (k[:, order], v[:, order]) for name, (k, v) in found.blocks.items()}
        assert error(KVCache(back), expected) > 100 * LIMIT
