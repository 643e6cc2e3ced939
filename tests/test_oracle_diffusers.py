"""diffusers and PEFT give the same: without a LoRA, and with a random one on every Linear of their networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from oracles import (
    FLUX2_FULL_SIZES,
    FLUX2_NORMS,
    LIMIT,
    Z_IMAGE_NORMS,
    Z_IMAGE_SIZES,
    Answers,
    Pair,
    flux2_ids,
    linears,
)
from tiny_models import build
from torch import Tensor

from i2l.i2l_core.base_models import find_model
from i2l.i2l_core.lora import LowRank

pytestmark = pytest.mark.slow

SIGMA = torch.tensor([0.7, 0.3])


def z_image(reference: bool = False) -> Pair:
    """`reference`: as Z-Image Omni sees it. Its eyes and odd lengths are left out: the libraries pad them otherwise."""
    from diffusers import ZImageTransformer2DModel

    theirs = ZImageTransformer2DModel(**Z_IMAGE_SIZES)
    # theirs has 1024 at any width, the host at most the width
    theirs.t_embedder = type(theirs.t_embedder)(256, mid_size=384)
    x, text = torch.randn(2, 16, 8, 12), torch.randn(2, 64 if reference else 40, 32)
    other, before = torch.randn(2, 16, 8, 8), torch.randn(2, 32, 32)

    def call() -> Tensor:
        if reference:
            pictures = [list(row) for row in zip(other[:, :, None], x[:, :, None], strict=True)]
            texts = [list(row) for row in zip(before, text, strict=True)]
            noisy = [[0, 1]] * 2
            out = theirs(pictures, 1 - SIGMA, texts, siglip_feats=[None] * 2, image_noise_mask=noisy)
        else:
            out = theirs(list(x[:, :, None]), 1 - SIGMA, list(text))
        return -torch.stack(out.sample)[:, :, 0]

    patcher = build("lumina2", **Z_IMAGE_SIZES)
    conditioning: dict[str, Any] = {"cross_attn": text}
    if reference:
        # the host turns references from the VAE's numbers into the network's
        conditioning["reference_latents"] = [patcher.model.process_latent_out(other)]
        conditioning["reference_latents_text_embeds"] = [before]
    return Pair(theirs, call, patcher, x, SIGMA, conditioning, Z_IMAGE_NORMS)


def flux2(guidance: bool = False) -> Pair:
    from diffusers import Flux2Transformer2DModel

    theirs = Flux2Transformer2DModel(
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        joint_attention_dim=48,
        guidance_embeds=guidance,
    )
    x, text = torch.randn(2, 128, 4, 6), torch.randn(2, 512, 48)
    img_ids, txt_ids = flux2_ids(4, 6, words=512)

    def call() -> Tensor:
        out = theirs(
            x.flatten(2).transpose(1, 2),
            text,
            SIGMA,
            img_ids,
            txt_ids,
            guidance=torch.full((2,), 4.0) if guidance else None,
        ).sample
        return out.transpose(1, 2).unflatten(2, (4, 6))

    patcher = build("flux2", depth=2, guidance_embed=guidance)
    return Pair(theirs, call, patcher, x, SIGMA, {"cross_attn": text, "guidance": 4.0}, FLUX2_NORMS)


def qwen_image(reference: bool = False) -> Pair:
    from diffusers import QwenImageTransformer2DModel

    theirs = QwenImageTransformer2DModel(
        num_layers=2, num_attention_heads=2, joint_attention_dim=48, zero_cond_t=reference
    )
    x, text = torch.randn(2, 16, 1, 8, 12), torch.randn(2, 20, 48)
    pictures = [x, torch.randn(2, 16, 1, 12, 8)][: 1 + reference]

    def packed(picture: Tensor) -> Tensor:
        """(N, 16, 1, H, W) -> (N, H / 2 * W / 2, 64)"""
        patches = picture[:, :, 0].unfold(2, 2, 2).unfold(3, 2, 2)
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def call() -> Tensor:
        shapes = [[(1, picture.shape[-2] // 2, picture.shape[-1] // 2) for picture in pictures]] * 2
        tokens = torch.cat([packed(picture) for picture in pictures], 1)
        out = theirs(tokens, text, timestep=SIGMA, img_shapes=shapes).sample[:, : 4 * 6]
        out = out.unflatten(2, (16, 2, 2)).unflatten(1, (4, 6))
        return out.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    patcher = build("qwen_image_2511" if reference else "qwen_image")
    conditioning: dict[str, Any] = {"cross_attn": text}
    if reference:
        conditioning["reference_latents"] = [patcher.model.process_latent_out(pictures[1])]
    return Pair(theirs, call, patcher, x, SIGMA, conditioning)


PAIRS = {
    "Z-Image": z_image,
    "Z-Image with a reference": lambda: z_image(reference=True),
    "FLUX.2 klein": flux2,
    "FLUX.2 dev": lambda: flux2(guidance=True),
    "Qwen-Image": qwen_image,
    "Qwen-Image-Edit-2511": lambda: qwen_image(reference=True),
}


def adapt(network: Any, layers: Mapping[str, LowRank]) -> None:
    """By PEFT."""
    from peft import LoraConfig

    network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(layers)))
    for name, layer in layers.items():
        adapter = network.get_submodule(name)
        adapter.lora_A["default"].weight.copy_(layer.down)
        adapter.lora_B["default"].weight.copy_(layer.up)


@pytest.fixture(scope="module", params=PAIRS)
def answers(host, request) -> Answers:
    torch.manual_seed(3)
    return Answers.ask(PAIRS[request.param](), adapt)


def test_the_networks_agree(answers):
    assert answers.plain_error() <= LIMIT


def test_every_linear_of_theirs_has_a_place(answers):
    assert set(answers.layers) == answers.places()


@pytest.mark.parametrize("way", ["merged", "live"])
def test_a_lora_on_every_linear_does_the_same(answers, way):
    assert answers.error(way) <= LIMIT


FULL_SIZE = [  # class, its arguments, base model
    ("ZImageTransformer2DModel", {"siglip_feat_dim": 1152}, "z-image"),
    *(("Flux2Transformer2DModel", sizes, id) for id, sizes in FLUX2_FULL_SIZES.items()),
    ("QwenImageTransformer2DModel", {}, "qwen-image"),
]


@pytest.mark.parametrize(("cls", "sizes", "id"), FULL_SIZE)
def test_every_linear_is_known_by_name_and_size(cls, sizes, id):
    import diffusers

    with torch.device("meta"):
        theirs = linears(getattr(diffusers, cls)(**sizes))
    base = find_model(id)
    assert base is not None
    slots = base.architecture.adapted_layers(base.weights())
    assert {slot.name: (slot.d_out, slot.d_in) for slot in slots} == theirs
