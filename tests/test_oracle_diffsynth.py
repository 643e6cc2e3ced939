"""DiffSynth gives the same: without a LoRA, and with a random one that it has hot-loaded on every Linear."""

from __future__ import annotations

import importlib
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
    is_absent,
    linears,
)
from tiny_models import CONFIGS, build, conditioning
from torch import Tensor, nn

from i2l.i2l_core.base_models import find_model
from i2l.i2l_core.lora import LowRank

pytestmark = [
    pytest.mark.slow,
    # transformers says so of diffsynth's configs
    pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated"),
]

SIGMA = torch.tensor([0.7])
STEP = 1000 * SIGMA  # what its pipelines call timestep


def z_image() -> Pair:
    from diffsynth.models.z_image_dit import TimestepEmbedder, ZImageDiT
    from diffsynth.pipelines.z_image import model_fn_z_image

    class Exact(TimestepEmbedder):
        """Theirs works in bf16 whatever the model is, and on 1024 numbers whatever its width is."""

        def forward(self, t: Tensor) -> Tensor:
            return self.mlp(self.timestep_embedding(t, self.frequency_embedding_size))

    theirs = ZImageDiT(**Z_IMAGE_SIZES)
    theirs.t_embedder = Exact(256, mid_size=384)
    x, text = torch.randn(1, 16, 8, 12), torch.randn(1, 40, 32)

    def call() -> Tensor:
        return model_fn_z_image(theirs, latents=x, timestep=STEP, prompt_embeds=text[0])

    return Pair(
        theirs, call, build("lumina2", **Z_IMAGE_SIZES), x, SIGMA, {"cross_attn": text}, Z_IMAGE_NORMS
    )


def flux2() -> Pair:
    from diffsynth.models.flux2_dit import Flux2DiT
    from diffsynth.pipelines.flux2_image import model_fn_flux2

    theirs = Flux2DiT(
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        joint_attention_dim=48,
        guidance_embeds=False,
    )
    x, text = torch.randn(1, 128, 4, 6), torch.randn(1, 512, 48)
    img_ids, txt_ids = flux2_ids(4, 6, words=512)

    def call() -> Tensor:
        out = model_fn_flux2(
            theirs,
            latents=x.flatten(2).transpose(1, 2),
            timestep=STEP,
            embedded_guidance=4.0,
            prompt_embeds=text,
            text_ids=txt_ids,
            image_ids=img_ids,
        )
        return out.transpose(1, 2).unflatten(2, (4, 6))

    return Pair(theirs, call, build("flux2", depth=2), x, SIGMA, {"cross_attn": text}, FLUX2_NORMS)


def hidream_o1() -> Pair:
    from diffsynth.models import hidream_o1_image_dit as module
    from diffsynth.pipelines.hidream_o1_image import model_fn_hidream_o1_image

    tiny = CONFIGS["hidream_o1"]
    full_size = module._build_hidream_config

    def small() -> Any:
        config = full_size()
        for key, value in tiny["text_config_overrides"].items():
            setattr(config.text_config, key, value)
        for key, value in tiny["vision_config_overrides"].items():
            setattr(config.vision_config, key, value)
        config.vision_config.out_hidden_size = config.text_config.hidden_size
        config.vision_config.deepstack_visual_indexes = [0]
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_build_hidream_config", small)
        theirs = module.HiDreamO1ImageModel()
    patcher = build("hidream_o1")
    x = torch.randn(1, 3, 64, 96)
    ((_, values),) = conditioning("hidream_o1", seed=3)
    values["reference_latents"] = [torch.rand(1, 64, 64, 3)]
    conds = {
        key: cond.cond for key, cond in patcher.model.extra_conds(noise=x, device=x.device, **values).items()
    }

    def call() -> Tensor:
        return model_fn_hidream_o1_image(
            theirs,
            x,
            STEP,
            conds["input_ids"],
            conds["position_ids"][0][:, None],
            conds["token_types"],
            conds["vinput_mask"],
            conds["ref_pixel_values"][0],
            conds["ref_image_grid_thw"][0],
            conds["ref_patches"],
        )

    renames = {r"^lm_head.*|.*deepstack_merger_list.*": "", r"^model\.": ""}
    return Pair(theirs, call, patcher, x, SIGMA, values, renames)


PAIRS = {"Z-Image": z_image, "FLUX.2": flux2, "HiDream-O1": hidream_o1}


def adapt(network: nn.Module, layers: Mapping[str, LowRank]) -> None:
    """By the hot loading of its pipelines."""
    from diffsynth.diffusion.base_pipeline import BasePipeline

    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.lora_A.default.weight"] = layer.down
        tensors[f"{name}.lora_B.default.weight"] = layer.up
    pipe = BasePipeline(device="cpu", torch_dtype=torch.float32)
    pipe.enable_lora_hot_loading(network)
    pipe.load_lora(network, state_dict=tensors, verbose=0)
    loaded = [module for module in network.modules() if getattr(module, "lora_A_weights", None)]
    assert len(loaded) == len(layers)


@pytest.fixture(scope="module", params=PAIRS)
def answers(host, request) -> Answers:
    torch.manual_seed(3)
    return Answers.ask(PAIRS[request.param](), adapt)


def test_the_networks_agree(answers):
    assert answers.plain_error() <= LIMIT


def test_every_linear_of_theirs_has_a_place(answers):
    assert set(answers.known()) == answers.places()


@pytest.mark.parametrize("way", ["merged", "live"])
def test_a_lora_on_every_linear_does_the_same(answers, way):
    """On those that the host does not have as well: HiDream-O1 does not use them."""
    assert answers.error(way) <= LIMIT


FULL_SIZE = [  # module, class, its arguments, base model
    ("z_image_dit", "ZImageDiT", {"siglip_feat_dim": 1152}, "z-image"),
    *(("flux2_dit", "Flux2DiT", sizes, id) for id, sizes in FLUX2_FULL_SIZES.items()),
    ("hidream_o1_image_dit", "HiDreamO1ImageModel", {}, "hidream-o1"),
    ("qwen_image_dit", "QwenImageDiT", {}, "qwen-image"),
]
COUNTS = {  # Linears in all
    "z-image": 291,
    "flux2-klein-4b": 109,
    "flux2-klein-9b": 153,
    "flux2-dev": 203,
    "hidream-o1": 374,
    "qwen-image": 846,
}


@pytest.mark.parametrize(("module", "cls", "sizes", "id"), FULL_SIZE)
def test_every_linear_is_known_by_name_and_size(module, cls, sizes, id):
    with torch.device("meta"):
        theirs = linears(getattr(importlib.import_module(f"diffsynth.models.{module}"), cls)(**sizes))
    base = find_model(id)
    assert base is not None
    assert len(theirs) == COUNTS[id]
    slots = base.architecture.adapted_layers(base.weights())
    expected = {name: size for name, size in theirs.items() if not is_absent(base.architecture, name)}
    assert {slot.name: (slot.d_out, slot.d_in) for slot in slots} == expected
    assert len(theirs) - len(expected) == (7 if id == "hidream-o1" else 0)
