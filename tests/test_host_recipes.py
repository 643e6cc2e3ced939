"""CONTRIBUTING's recipes: a base model and a predictor family are each one new file and its entry in one list.

Both are added to a copy of the pack, which is imported under a name of its own.
"""

from __future__ import annotations

import contextlib
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from copied_pack import imported_as
from safetensors.torch import save_file
from torch import nn

from i2l.tools.host import ROOT

BASE_MODEL = """
from .table import Architecture, BaseModel, LayerRule

TOY = Architecture(
    title="Toy class",
    rules=(
        LayerRule("stack.{}.q", "stack.{}.qk", (0, 2), size=("width", "width")),
        LayerRule("stack.{}.k", "stack.{}.qk", (1, 2), size=("width", "width")),
        LayerRule("stack.{}.out", "stack.{}.out", size=("width", "width")),
    ),
    signature=("stack.0.qk", "stack.0.out"),
    sizes={"width": ("stack.0.out", 0), "depth": "stack.{}.qk"},
    sections={"stack": "toy blocks"},
    network="ToyNetwork",
)
MODELS = (BaseModel("toy", "Toy", TOY, {"width": 8, "depth": 2}, {}),)
"""
FAMILY = '''
import torch

from ..files.safetensors import open_safetensors
from ..lora import LoRA, LowRank, Target
from .base import Family, Predictor, StyleAndNeutral


class ToyPredictor(Predictor):
    """The mean colour of the references on the diagonal of one layer."""

    name = "toy"

    def __init__(self, gain):
        self.gain = gain

    def describe(self):
        return "a toy"

    def get_models(self):
        return []

    def predict(self, references, progress=None):
        def lora(value):
            up = self.gain * value * torch.eye(8)
            return LoRA({Target("stack.0.out"): LowRank(torch.eye(8), up)}, base_model="toy", predictor=self.name)

        return StyleAndNeutral(lora(torch.stack([one.pixels.mean() for one in references]).mean()), lora(0.5))


def load(path, runtime, options):
    with open_safetensors(path) as file:
        return ToyPredictor(float(file.get_tensor("toy.gain")))


TOY = Family(
    "toy",
    recognise=lambda source: source.header is not None and "toy.gain" in source.header.shapes,
    describe=lambda source: ("a toy predictor", "play with it"),
    load=load,
)
'''


class ToyNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.ModuleList(
            nn.ModuleDict({"qk": nn.Linear(8, 16, bias=False), "out": nn.Linear(8, 8, bias=False)})
            for _ in range(2)
        )


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[Callable[..., Callable[[str], types.ModuleType]]]:
    """A copy of the pack's code to which a recipe is applied; gives a function that imports its modules."""
    without = shutil.ignore_patterns("*.safetensors", "__pycache__")
    shutil.copytree(ROOT / "i2l_core", tmp_path / "i2l_core", ignore=without)
    with contextlib.ExitStack() as stack:

        def add(room: str, text: str, entries: dict[str, str]) -> Callable[[str], types.ModuleType]:
            (tmp_path / "i2l_core" / room / "toy.py").write_text(text, "utf-8")
            path = tmp_path / "i2l_core" / room / "__init__.py"
            source = path.read_text("utf-8")
            for before, after in entries.items():
                assert source.count(before) == 1
                source = source.replace(before, after)
            path.write_text(source, "utf-8")
            module = stack.enter_context(imported_as("i2l_with_a_toy", tmp_path))
            return lambda name: module(f"i2l_core.{name}")

        yield add


def test_a_base_model_is_one_file_and_one_line(host: Any, pack: Any, tmp_path: Path):
    import comfy.model_patcher

    module = pack(
        "base_models",
        BASE_MODEL,
        {
            "lumina2, qwen_image\n": "lumina2, qwen_image, toy\n",
            "qwen_image, demo)": "qwen_image, demo, toy)",
        },
    )
    base_models = module("base_models")
    assert base_models.find_model("toy").title == "Toy"

    network = ToyNetwork()
    holder = nn.Module()
    holder.diffusion_model = network
    patcher = comfy.model_patcher.ModelPatcher(holder, torch.device("cpu"), torch.device("cpu"))
    lora_module, names = module("lora"), {"stack.1.q": (0, 8), "stack.1.k": (8, 8), "stack.0.out": None}
    tensors, expected = {}, {}
    for name, rows in names.items():
        down, up = torch.randn(2, 8), torch.randn(8, 2)
        tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        expected[lora_module.Target("stack.1.qk" if rows else name, rows)] = up @ down
    save_file(tensors, tmp_path / "diffusers.safetensors")

    lora = module("lora_files.file").load(tmp_path / "diffusers.safetensors")
    assert lora.base_model == "toy"
    assert {target: layer.delta() for target, layer in lora.layers.items()}.keys() == expected.keys()
    patched = module("host.patch").apply_merged(patcher, lora, 1.0)
    assert module("host.patch").base_model_of(patcher).id == "toy"
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    patched.patch_model()
    for target, delta in expected.items():
        start, length = target.rows or (0, 8)
        change = network.get_submodule(target.weight).weight - before[f"{target.weight}.weight"]
        torch.testing.assert_close(change[start : start + length], delta)
    patched.unpatch_model()
    assert module("base_models.places").position_of("stack.1.out").section == "toy blocks"


def test_a_predictor_family_is_one_file_and_one_line(
    host: Any, pack: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    module = pack(
        "predictors",
        FAMILY,
        {"import TEMPLATE\n": "import TEMPLATE\nfrom .toy import TOY\n", "V1, QUERY)": "V1, QUERY, TOY)"},
    )
    path = tmp_path / "toy.safetensors"
    save_file({"toy.gain": torch.tensor(2.0)}, path)
    reference = ROOT / "workflows" / "library" / "chalk" / "1.png"

    assert module("inspection").inspect_path(path).verdict == "a toy predictor"
    out = tmp_path / "out.safetensors"
    assert module("commands.predict").main([str(reference), "--predictor", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    by_command = module("lora_files.file").load(out)

    predictor = module("host.predictors.runtime").load_predictor(path)
    assert predictor.describe() == "a toy"
    by_node = predictor.predict([module("references.files").read_reference(reference)]).lora
    (one,), (other,) = by_command.layers.values(), by_node.layers.values()
    torch.testing.assert_close(one.delta(), other.delta())
    assert other.delta()[0, 0] == pytest.approx(
        2 * float(module("references.files").read_reference(reference).pixels.mean())
    )
