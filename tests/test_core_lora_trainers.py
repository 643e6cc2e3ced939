"""docs/lora-files.md: what each trainer writes, imitated, and what we do with it. Each row of its table is a test."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, Target
from i2l.i2l_core.lora_files.file import load

DOCS = Path(__file__).parents[1] / "docs" / "lora-files.md"
RANK = 4
Tensors = dict[str, Tensor]
AB, DOWN_UP = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")


class File:
    """A file that a trainer writes, and the change of each target that it stands for."""

    def __init__(
        self, beside: Mapping[str, str] | None = None, header: Mapping[str, str] | None = None
    ) -> None:
        self.tensors: Tensors = {}
        self.expected: dict[Target, Tensor] = {}
        self.left_out: dict[str, int] = {}
        self.beside, self.header = dict(beside or {}), dict(header or {})
        self.name = "adapter_model.safetensors" if beside else "style.safetensors"

    def layer(
        self,
        name: str,
        target: Target | None,
        size: tuple[int, int] = (256, 256),
        suffixes: tuple[str, str] = AB,
        alpha: float | None = None,
        factor: float = 1.0,
        swapped: bool = False,
    ) -> File:
        """A pair under `name`. `alpha`: as a tensor beside it; `factor`: what the header or a file beside it says."""
        down, up = torch.randn(RANK, size[1]), torch.randn(size[0], RANK)
        self.tensors |= {f"{name}.{suffixes[0]}": down, f"{name}.{suffixes[1]}": up}
        if alpha is not None:
            self.tensors[f"{name}.alpha"] = torch.tensor(alpha)
            factor = alpha / RANK
        if target is not None:
            delta = up @ down * factor
            self.expected[target] = torch.cat(delta.chunk(2)[::-1]) if swapped else delta
        return self


def qkv(block: str, part: int) -> Target:
    return Target(f"{block}.attention.qkv", (part * 256, 256))


Z, F, Q, H = "layers.3", "double_blocks.1", "transformer_blocks.2", "language_model.layers.1"
ADAPTER = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 8})}
PEFT = {"adapter_config.json": json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK})}


def ai_toolkit() -> File:
    """Names of the network it trains: diffusers' for Z-Image and Qwen-Image, the original's for FLUX.2."""
    file = File().layer(f"diffusion_model.{Z}.attention.to_k", qkv(Z, 1))
    return file.layer(f"diffusion_model.{Z}.attention.to_out.0", Target(f"{Z}.attention.out"))


def ai_toolkit_flux2() -> File:
    file = File().layer(f"diffusion_model.{F}.img_attn.qkv", Target(f"{F}.img_attn.qkv"), (768, 256))
    return file.layer(
        "diffusion_model.single_blocks.0.linear1", Target("single_blocks.0.linear1"), (2304, 256)
    )


def ai_toolkit_hidream() -> File:
    name = f"{H}.self_attn.q_proj"
    return File().layer(f"diffusion_model.{name}", Target(name))


def ai_toolkit_lokr() -> File:
    file = File()
    file.tensors = {f"diffusion_model.{Z}.attention.to_k.lokr_w{n}": torch.randn(4, 4) for n in (1, 2)}
    return file


def ai_toolkit_dora() -> File:
    file = ai_toolkit()
    file.tensors[f"diffusion_model.{Z}.attention.to_k.magnitude"] = torch.ones(256)
    return file


def musubi() -> File:
    file = File().layer(f"lora_unet_{flat(Z)}_attention_to_v", qkv(Z, 2), suffixes=DOWN_UP, alpha=2)
    return file.layer(
        "lora_unet_noise_refiner_0_attention_to_q", qkv("noise_refiner.0", 0), suffixes=DOWN_UP, alpha=1
    )


def musubi_flux2() -> File:
    file = File().layer(
        f"lora_unet_{flat(F)}_txt_attn_qkv", Target(f"{F}.txt_attn.qkv"), (768, 256), DOWN_UP, alpha=2
    )
    return file.layer(
        "lora_unet_single_blocks_0_linear2", Target("single_blocks.0.linear2"), (256, 1024), DOWN_UP, 8
    )


def musubi_hidream() -> File:
    name = f"{H}.mlp.down_proj"
    return File().layer(f"lora_unet_model_{flat(name)}", Target(name), (256, 512), DOWN_UP, alpha=2)


def musubi_z_image_to_comfy() -> File:
    return File().layer(
        f"lora_unet_{flat(Z)}_attention_qkv", Target(f"{Z}.attention.qkv"), (768, 256), DOWN_UP, alpha=12
    )


def musubi_converted_z_image() -> File:
    """convert_lora.py turns every "_" into "." and mends only some names back."""
    file = File().layer("diffusion_model.noise.refiner.0.attention.to_q", qkv("noise_refiner.0", 0))
    file.layer(f"diffusion_model.{Z}.adaLN.modulation.0", Target(f"{Z}.adaLN_modulation.0"), (1024, 256))
    return file.layer(f"diffusion_model.{Z}.feed_forward.w1", Target(f"{Z}.feed_forward.w1"), (512, 256))


def musubi_converted_flux2() -> File:
    file = File().layer(f"diffusion_model.{F}.img_attn_qkv", Target(f"{F}.img_attn.qkv"), (768, 256))
    return file.layer(f"diffusion_model.{F}.img_mlp.0", Target(f"{F}.img_mlp.0"), (1536, 256))


def with_text_encoder(file: File, name: str, suffixes: tuple[str, str] = AB) -> File:
    file.layer(name, None, suffixes=suffixes)
    file.tensors["bundle_emb.00000000-0000.text_encoder"] = torch.randn(2, 64)
    file.left_out = {"layers of a text encoder": 1, "embeddings": 1}
    return file


def onetrainer_diffusers() -> File:
    file = File().layer(f"transformer.{Z}.attention.to_q", qkv(Z, 0))
    return with_text_encoder(file, "text_encoder.model.layers.0.mlp.up_proj")


def onetrainer_kohya() -> File:
    file = File().layer(
        f"lora_unet_{flat(Z)}_attention_qkv", Target(f"{Z}.attention.qkv"), (768, 256), DOWN_UP, alpha=1
    )
    return with_text_encoder(file, "lora_te_model_layers_0_mlp_up_proj", DOWN_UP)


def onetrainer_original() -> File:
    return File().layer(f"{Z}.attention.qkv", Target(f"{Z}.attention.qkv"), (768, 256), alpha=1)


def onetrainer_comfy() -> File:
    file = File().layer(
        f"diffusion_model.{Z}.attention.qkv", Target(f"{Z}.attention.qkv"), (768, 256), alpha=1
    )
    return with_text_encoder(file, "text_encoders.qwen3_4b.transformer.model.layers.0.mlp.up_proj")


def onetrainer_legacy() -> File:
    file = File().layer(f"lora_transformer_{flat(Z)}_attention_to_q", qkv(Z, 0), suffixes=DOWN_UP, alpha=1)
    return with_text_encoder(file, "lora_te1_model_layers_0_mlp_up_proj", DOWN_UP)


def onetrainer_dora() -> File:
    file = onetrainer_comfy()
    file.tensors[f"diffusion_model.{Z}.attention.qkv.dora_scale"] = torch.ones(1, 256)
    return file


def kohya_flux1() -> File:
    file = File().layer("lora_unet_double_blocks_0_img_attn_proj", None, suffixes=DOWN_UP, alpha=1)
    return file.layer("lora_unet_double_blocks_0_img_mod_lin", None, (1536, 256), DOWN_UP, alpha=1)


def diffusers() -> File:
    file = File(header=ADAPTER).layer(f"transformer.{Q}.attn.to_q", Target(f"{Q}.attn.to_q"), factor=2)
    return file.layer(f"transformer.{Q}.img_mod.1", Target(f"{Q}.img_mod.1"), (1536, 256), factor=2)


def diffusers_flux2() -> File:
    file = File(header=ADAPTER).layer(
        "transformer.norm_out.linear",
        Target("final_layer.adaLN_modulation.1"),
        (512, 256),
        factor=2,
        swapped=True,
    )
    return file.layer(
        "transformer.single_transformer_blocks.0.attn.to_out",
        Target("single_blocks.0.linear2"),
        (256, 1024),
        factor=2,
    )


def peft() -> File:
    config = json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "use_rslora": True})
    file = File(beside={"adapter_config.json": config})
    return file.layer(f"base_model.model.{Z}.attention.to_v", qkv(Z, 2), factor=4)


def simpletuner() -> File:
    return File(header=ADAPTER).layer(f"transformer.{Z}.attention.to_q", qkv(Z, 0), factor=2)


def simpletuner_comfyui() -> File:
    """The header says alpha as well; the tensor wins."""
    file = File(header={"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": 99})})
    return file.layer(f"diffusion_model.{Z}.attention.to_q", qkv(Z, 0), alpha=8)


def simpletuner_lycoris() -> File:
    file = File()
    file.tensors = {f"lycoris_{flat(Z)}_attention_to_q.lokr_w{n}": torch.randn(4, 4) for n in (1, 2)}
    return file


def diffusion_pipe() -> File:
    return (
        File(beside=PEFT)
        .layer(f"diffusion_model.{Q}.attn.to_k", Target(f"{Q}.attn.to_k"))
        .layer(f"diffusion_model.{Q}.txt_mlp.net.2", Target(f"{Q}.txt_mlp.net.2"), (256, 1024))
    )


def diffsynth() -> File:
    suffixes = ("lora_A.default.weight", "lora_B.default.weight")
    return File().layer(f"{Z}.attention.to_k", qkv(Z, 1), suffixes=suffixes)


def core_train_lora() -> File:
    file = File().layer(f"diffusion_model.{Z}.attention.qkv", None, (768, 256), DOWN_UP, alpha=1)
    file.tensors[f"diffusion_model.{Z}.attention_norm1.diff"] = torch.randn(256)
    file.tensors[f"diffusion_model.{Z}.attention.qkv.diff_b"] = torch.randn(768)
    return file


def core_save_lora() -> File:
    return File().layer(
        f"diffusion_model.{Z}.attention.qkv", Target(f"{Z}.attention.qkv"), (768, 256), DOWN_UP
    )


def flat(name: str) -> str:
    return name.replace(".", "_")


READ = ""
# the first two columns of the table -> (the file, READ or what is refused)
ROWS: Mapping[tuple[str, str], tuple[Callable[[], File], str]] = {
    ("ai-toolkit", "Z-Image, Qwen-Image"): (ai_toolkit, READ),
    ("ai-toolkit", "FLUX.2"): (ai_toolkit_flux2, READ),
    ("ai-toolkit", "HiDream-O1"): (ai_toolkit_hidream, READ),
    ("ai-toolkit", "LoKr"): (ai_toolkit_lokr, "LoKr"),
    ("ai-toolkit", "DoRA"): (ai_toolkit_dora, "DoRA"),
    ("musubi-tuner", "Z-Image, Qwen-Image"): (musubi, READ),
    ("musubi-tuner", "FLUX.2"): (musubi_flux2, READ),
    ("musubi-tuner", "HiDream-O1"): (musubi_hidream, READ),
    ("musubi-tuner", "convert_z_image_lora_to_comfy"): (musubi_z_image_to_comfy, READ),
    ("musubi-tuner", "convert_lora, Z-Image"): (musubi_converted_z_image, READ),
    ("musubi-tuner", "convert_lora, FLUX.2"): (musubi_converted_flux2, READ),
    ("OneTrainer", "DIFFUSERS_LORA"): (onetrainer_diffusers, READ),
    ("OneTrainer", "KOHYA_LORA"): (onetrainer_kohya, READ),
    ("OneTrainer", "ORIGINAL_LORA"): (onetrainer_original, READ),
    ("OneTrainer", "COMFY_LORA"): (onetrainer_comfy, READ),
    ("OneTrainer", "LEGACY_LORA"): (onetrainer_legacy, READ),
    ("OneTrainer", "DoRA"): (onetrainer_dora, "DoRA"),
    ("kohya sd-scripts", "FLUX.1"): (kohya_flux1, "it is for FLUX.1, which is not supported"),
    ("diffusers", "Z-Image, Qwen-Image"): (diffusers, READ),
    ("diffusers", "FLUX.2"): (diffusers_flux2, READ),
    ("PEFT", "save_pretrained"): (peft, READ),
    ("SimpleTuner", "diffusers"): (simpletuner, READ),
    ("SimpleTuner", "comfyui"): (simpletuner_comfyui, READ),
    ("SimpleTuner", "LyCORIS"): (simpletuner_lycoris, "LoKr"),
    ("diffusion-pipe", "LoRA"): (diffusion_pipe, READ),
    ("DiffSynth-Studio", "LoRA"): (diffsynth, READ),
    ("ComfyUI", "Train LoRA"): (core_train_lora, "full weight differences (.diff)"),
    ("ComfyUI", "Save LoRA Weights"): (core_save_lora, READ),
}


def written(file: File, folder: Path) -> Path:
    for name, text in file.beside.items():
        (folder / name).write_text(text)
    save_file(file.tensors, folder / file.name, file.header)
    return folder / file.name


@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row) for row in ROWS])
def test_a_file_of_each_trainer_is_read_right_or_refused(row, tmp_path):
    make, refused = ROWS[row]
    file = make()
    path = written(file, tmp_path)
    if refused:
        with pytest.raises(I2LError, match=re.escape(refused)) as error:
            load(path)
        assert str(error.value).startswith(f"{file.name}: ")
        assert "Load LoRA" in str(error.value)
        return
    lora: LoRA = load(path)
    assert lora.layers.keys() == file.expected.keys()
    for target, delta in file.expected.items():
        torch.testing.assert_close(lora.layers[target].delta(), delta)
    assert lora.left_out == file.left_out


def test_the_table_in_the_docs_has_these_rows():
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells: list[Any] = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    rows = {(cell[0], cell[1]): cell[-1] for cell in cells if len(cell) == 4 and cell[0] != "writer"}
    assert list(rows) == list(ROWS)
    for row, (_, refused) in ROWS.items():
        assert rows[row].startswith("refused" if refused else "read"), row
