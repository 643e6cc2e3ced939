"""Version 1 predictors against the reference: DiffSynth-Studio's own classes and merge, `diffsynth` 2.1.12.

Its classes are used as they are, with all their layers at their real widths; only the number of blocks, the width
of the code and the length of the residual are small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import build
from tiny_v1 import PUBLISHED, qwen, z_image
from torch import Tensor

from i2l.i2l_core.base_models import MODELS, BaseModel
from i2l.i2l_core.lora import LoRA, Target
from i2l.i2l_core.predictors.v1 import kinds as v1_kinds
from i2l.i2l_core.predictors.v1.kinds import QWEN, Z_IMAGE, Residual, V1Config
from i2l.i2l_core.predictors.v1.network import V1Network, load_v1

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CODE = 5
FEW_Z_IMAGE = z_image(layers=2, dim=3840, mlp=10240)
FEW_QWEN = qwen(layers=2, hidden=3072)
SEEDS_AND_PICTURES = [(1, 1), (2, 2), (3, 5)]


def diffsynth_z_image(model: BaseModel) -> Any:
    """ZImageImage2LoRAModel for a base model of other sizes: its components, its forward."""
    from diffsynth.models.z_image_image2lora import ZImageImage2LoRAComponent, ZImageImage2LoRAModel

    dim, mlp = model.sizes["dim"], model.other_sizes["mlp"]
    patterns = [
        [(f"attention.{name}", dim, dim) for name in ("to_q", "to_k", "to_v", "to_out.0")],
        [("feed_forward.w1", dim, mlp), ("feed_forward.w2", mlp, dim), ("feed_forward.w3", dim, mlp)],
    ]
    counts = {
        "layers": model.sizes["layers"],
        "context_refiner": model.other_sizes["context"],
        "noise_refiner": model.other_sizes["refiners"],
    }

    class Other(ZImageImage2LoRAModel):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            for part, count in counts.items():
                component = ZImageImage2LoRAComponent(
                    patterns, part, num_blocks=count, use_residual=False, compress_dim=CODE
                )
                setattr(self, f"{part}_lora", component)

    return Other().eval().requires_grad_(False)


def diffsynth_qwen(layers: int, **sizes: Any) -> Any:
    from diffsynth.models.qwen_image_image2lora import QwenImageImage2LoRAModel

    network = QwenImageImage2LoRAModel(num_blocks=layers, compress_dim=CODE, **sizes)
    return network.eval().requires_grad_(False)


def diffsynth_tiny_qwen(model: BaseModel) -> Any:
    """QwenImageImage2LoRAModel for a base model of other sizes: its blocks, its forward."""
    from diffsynth.models.qwen_image_image2lora import LoRATrainerBlock, QwenImageImage2LoRAModel

    d = model.sizes["hidden"]
    patterns = [
        [(f"attn.{name}", d, d) for name in ("to_q", "to_k", "to_v", "to_out.0")],
        [("img_mlp.net.2", 4 * d, d), ("img_mod.1", d, 6 * d)],
        [(f"attn.{name}", d, d) for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")],
        [("txt_mlp.net.2", 4 * d, d), ("txt_mod.1", d, 6 * d)],
    ]

    class Other(QwenImageImage2LoRAModel):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.blocks = torch.nn.ModuleList(
                LoRATrainerBlock(group, compress_dim=CODE, block_id=i, use_residual=False)
                for group in patterns
                for i in range(model.sizes["layers"])
            )
            self.use_residual = False

    return Other().eval().requires_grad_(False)


def case(name: str) -> tuple[Any, V1Config]:
    """The reference's network with random weights, and the configuration that ours must find in its file."""
    if name == "Z-Image-i2L":
        return diffsynth_z_image(FEW_Z_IMAGE), V1Config(Z_IMAGE, FEW_Z_IMAGE, 5632, CODE)
    if name == "Style":
        return diffsynth_qwen(2, use_residual=False), V1Config(QWEN, FEW_QWEN, 5632, CODE)
    length, mid = (71, 6) if name == "Coarse" else (1376, 2)
    network = diffsynth_qwen(2, residual_length=length, residual_mid_dim=mid)
    return network, V1Config(QWEN, FEW_QWEN, 5632, CODE, residual=Residual(length, 3584, mid))


NAMES = ["Z-Image-i2L", "Style", "Coarse", "Fine"]


@pytest.fixture(autouse=True)
def _models_of_few_blocks_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v1_kinds, "MODELS", (*MODELS, FEW_Z_IMAGE, FEW_QWEN))


def theirs(network: Any, x: Tensor, states: Tensor | None) -> dict[str, Tensor]:
    """As ZImageUnit_Image2LoRADecode and QwenImageUnit_Image2LoRADecode do: one by one, then merged."""
    from diffsynth.utils.lora.merge import merge_lora

    # the hidden states arrive flattened to one row
    each: Any = [
        network(x=x[i : i + 1], residual=None if states is None else states[i].view(1, -1))
        for i in range(len(x))
    ]
    return merge_lora(each, alpha=1 / len(x))  # type: ignore[arg-type]


def in_host(name: str) -> tuple[str, int | None]:
    """The host's weight for one of their layer names, and which third of its rows."""
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        if name.endswith(f".attention.{part}"):
            return name.replace(part, "qkv"), i
    return name.replace("attention.to_out.0", "attention.out"), None


def matrices(lora: dict[str, Tensor]) -> dict[Target, tuple[Tensor, Tensor]]:
    """Their LoRA by the host's targets: (down, up)."""
    found = {}
    for key, down in lora.items():
        if ".lora_A." in key:
            up = lora[key.replace(".lora_A.", ".lora_B.")]
            weight, third = in_host(key.removesuffix(".lora_A.default.weight"))
            rows = None if third is None else (third * len(up), len(up))
            found[Target(weight, rows)] = (down, up)
    return found


def inputs(config: V1Config, seed: int, count: int) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, config.token_dim, generator=generator)
    if config.residual is None:
        return x, None
    return x, torch.randn(count, config.residual.length, config.residual.width, generator=generator) * 30


def worst(ours: LoRA, expected: dict[Target, tuple[Tensor, Tensor]]) -> float:
    """The largest difference in any matrix, over the largest entry of that matrix."""
    assert ours.layers.keys() == expected.keys()
    errors = []
    for target, pair in expected.items():
        for mine, reference in zip((ours.layers[target].down, ours.layers[target].up), pair, strict=True):
            assert mine.dtype == reference.dtype
            assert mine.shape == reference.shape
            errors.append(((mine.double() - reference.double()).abs().max() / reference.abs().max()).item())
    return max(errors)


REGISTERED = {
    "Z-Image-i2L": "z_image_image2lora_style",
    "Qwen-Image-i2L Style": "qwen_image_image2lora_style",
    "Qwen-Image-i2L Coarse": "qwen_image_image2lora_coarse",
    "Qwen-Image-i2L Fine": "qwen_image_image2lora_fine",
}


@pytest.mark.parametrize("title", PUBLISHED)
def test_the_reference_knows_files_of_our_names_and_shapes(title: str):
    from diffsynth.configs.model_configs import MODEL_CONFIGS
    from diffsynth.core.loader.file import convert_keys_dict_to_single_str, hashlib

    config, _ = PUBLISHED[title]
    tensors = V1Network(config, device="meta").tensors()
    keys = convert_keys_dict_to_single_str({name: list(tensor.shape) for name, tensor in tensors.items()})
    found = [
        entry["model_name"]
        for entry in MODEL_CONFIGS
        if entry["model_hash"] == hashlib.md5(keys.encode()).hexdigest()
    ]
    assert found == [REGISTERED[title]]


@pytest.mark.parametrize("name", NAMES)
def test_the_lora_is_the_references(tmp_path: Path, name: str):
    """fp32: 1e-5 of a matrix' largest entry. bf16: 1.5 %, about two roundings to its 8 bits: the reference shares
    the change out over the pictures by scaling A, we by scaling what A is made from."""
    torch.manual_seed(NAMES.index(name))
    network, config = case(name)
    save_file(network.state_dict(), tmp_path / "p.safetensors")
    loaded = load_v1(tmp_path / "p.safetensors")
    assert loaded.config == config
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1.5e-2)):
        network.to(dtype)
        loaded.predictor.to(dtype)
        for seed, count in SEEDS_AND_PICTURES:
            x, states = inputs(config, seed, count)
            x, states = x.to(dtype), None if states is None else states.to(dtype)
            error = worst(loaded.predictor(x, residuals=states), matrices(theirs(network, x, states)))
            assert error < limit, f"{dtype}, {count} pictures: {error:.1e}"


@pytest.mark.parametrize("name", ["lumina2", "qwen_image"])
def test_the_hosts_weights_become_what_its_own_loader_makes_of_the_references_file(
    host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
):
    """A published LoRA goes through ComfyUI's Load LoRA, ours through Apply Predicted LoRA: the same model."""
    import comfy.sd

    from i2l.i2l_core.host.patch import apply_merged, weights_of

    patcher = build(name)
    if name == "lumina2":
        mlp = weights_of(patcher)["layers.0.feed_forward.w1.weight"][0]
        model = z_image(layers=6, dim=256, mlp=mlp)
        network = diffsynth_z_image(model)
    else:
        model = qwen(layers=2, hidden=256)
        network = diffsynth_tiny_qwen(model)
    monkeypatch.setattr(v1_kinds, "MODELS", (model,))
    save_file(network.state_dict(), tmp_path / "p.safetensors")
    predictor = load_v1(tmp_path / "p.safetensors").predictor
    x = torch.randn(2, predictor.config.token_dim)
    lora = LoRA(predictor(x).layers)

    stock, _ = comfy.sd.load_lora_for_models(patcher, None, theirs(network, x, None), 0.8, 0)
    expected, found = (patched_weights(one) for one in (stock, apply_merged(patcher, lora, 0.8)))
    before = dict(patcher.model.diffusion_model.named_parameters())
    changed = {target.weight for target in lora.layers}
    assert found.keys() == expected.keys() == before.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-5, atol=1e-6)
        assert (key.removesuffix(".weight") in changed) == (not torch.equal(weight, before[key]))


def patched_weights(patcher: Any) -> dict[str, Tensor]:
    patcher.patch_model(device_to=torch.device("cpu"))
    try:
        return {name: p.detach().clone() for name, p in patcher.model.diffusion_model.named_parameters()}
    finally:
        patcher.unpatch_model(device_to=torch.device("cpu"))
