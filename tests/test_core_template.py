"""Diffusion Templates: what is read without running, what is refused, and what running gives."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import sys
from pathlib import Path

import pytest
import template_folders
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import nn

from i2l.i2l_core.base_models import find_model
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora_files.tensors import from_state_dict
from i2l.i2l_core.predictors.published import PUBLISHED, where_to_get
from i2l.i2l_core.predictors.template.read import read_template
from i2l.i2l_core.predictors.template.run import PERMISSION, LoadedTemplate, load_template
from i2l.i2l_core.predictors.v1.kinds import Z_IMAGE, V1Config
from i2l.tools.host import ROOT

SIMPLE = """
import torch
class Net(torch.nn.Module):
    def process_inputs(self, image, **kwargs):
        return {}
    def forward(self, **kwargs):
        return OUTPUT
TEMPLATE_MODEL = Net
"""
LORA = '{"lora": {"x.lora_A.weight": torch.ones(1, 2), "x.lora_B.weight": torch.ones(2, 1)}}'


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PERMISSION, "1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models" / "i2l"
    root.mkdir(parents=True)
    return root


def load(folder: Path, dtype: torch.dtype = torch.float32, allow_code: bool = True) -> LoadedTemplate:
    return load_template(read_template(folder, [folder.parent]), dtype, allow_code)


def left_behind() -> list[str]:
    return [name for name in sys.modules if name.startswith("_i2l_template_")]


def pictures(count: int = 2) -> list[Image.Image]:
    return [Image.new("RGB", (20 + 7 * i, 30), (10, 200, 40 * i)) for i in range(count)]


# reading


def test_reading_runs_nothing(root: Path):
    marker = root / "marker"
    template = read_template(template_folders.hostile(root / "bad", marker), [root])
    assert not marker.exists()
    assert template.name == "bad"
    assert template.network == "TEMPLATE_MODEL"
    assert template.weights == ()


def test_what_a_folder_says(root: Path):
    template = read_template(template_folders.style(root / "ink"), [root])
    assert template.network == "Style"
    assert template.weights == ("model.safetensors",)
    assert template.imports == ("numpy", "torch")
    assert template.missing == ()


@pytest.mark.parametrize(
    ("program", "network", "weights"),
    [
        ("TEMPLATE_MODEL = a.b.C\nTEMPLATE_MODEL_PATH = ['1.safetensors', '2.safetensors']", "C", 2),
        ("TEMPLATE_MODEL = a" + ".b" * 900 + "\nTEMPLATE_MODEL_PATH = '\\0.safetensors'", "b", None),
        ("from net import Net as TEMPLATE_MODEL", "TEMPLATE_MODEL", 0),
        ("class TEMPLATE_MODEL: pass\nTEMPLATE_MODEL_PATH: str = None", "TEMPLATE_MODEL", 0),
        ("TEMPLATE_MODEL = make()\nTEMPLATE_MODEL_PATH = 'model' + '.safetensors'", "TEMPLATE_MODEL", None),
        ("if True:\n    TEMPLATE_MODEL = X\nTEMPLATE_MODEL_PATH = 3", "X", None),
    ],
)
def test_ways_to_say_it(root: Path, program: str, network: str, weights: int | None):
    template = read_template(template_folders.write(root / "t", program), [root])
    assert template.network == network
    assert (None if template.weights is None else len(template.weights)) == weights


def test_packages_that_are_not_there_are_known_without_running(root: Path):
    program = "import os, numpy\nfrom no_such_package.deep import x\nfrom . import y\n" + SIMPLE
    template = read_template(template_folders.write(root / "t", program), [root])
    assert template.imports == ("no_such_package", "numpy", "torch")
    assert template.missing == ("no_such_package",)
    assert template.describe() == (
        "Diffusion Template Net with its own encoder, no weights: it starts from random ones, "
        "not installed: no_such_package"
    )


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("x = (", "its model.py is not valid Python (SyntaxError: "),
        ("a\0b", "its model.py is not valid Python ("),
        ("(" * 5000, "its model.py is not valid Python ("),
        ("a" + ".b" * 100_000, "its model.py is not valid Python ("),
        ("import torch", "does not set TEMPLATE_MODEL, so it is not a Diffusion Template"),
        ("# " + "x" * (1 << 18), "is larger than 256 KB"),
        (
            "class TEMPLATE_MODEL: pass\n" + "".join(f"import a{n}\n" for n in range(1001)),
            "names 1001 packages and 0 files of weights, expected at most 1000 of each",
        ),
        (
            "class TEMPLATE_MODEL: pass\nTEMPLATE_MODEL_PATH = [" + '"a",' * 1001 + "]",
            "names 0 packages and 1001 files of weights, expected at most 1000 of each",
        ),
    ],
    ids=["syntax", "zero byte", "deep", "deeper", "another program", "huge", "imports", "weights"],
)
def test_a_program_that_is_none(root: Path, program: str, message: str):
    folder = template_folders.write(root / "t", program)
    with pytest.raises(I2LError) as caught:
        read_template(folder, [root])
    assert str(caught.value).startswith("t: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_program(root: Path):
    (root / "ZImage-i2L-v2").mkdir()
    with pytest.raises(
        I2LError, match=r"without model\.py: .* get all files of https://\S+/ZImage-i2L-v2 into "
    ):
        read_template(root / "ZImage-i2L-v2", [root])


@pytest.mark.parametrize("what", ["folder", "program", "weights"])
def test_links_that_lead_out(root: Path, tmp_path: Path, what: str):
    outside = template_folders.style(tmp_path / "outside")
    if what == "folder":
        (root / "t").symlink_to(outside, target_is_directory=True)
        message = "t is a link to .*outside, outside of the folders for predictors"
    else:
        folder = template_folders.style(root / "t")
        name = "model.py" if what == "program" else "model.safetensors"
        (folder / name).unlink()
        (folder / name).symlink_to(outside / name)
        message = "t: its (model.py is a link out of|weights model.safetensors are outside of) the folder"
    with pytest.raises(I2LError, match=message):
        load(root / "t")
    assert not left_behind()


def test_a_root_may_be_a_link(root: Path, tmp_path: Path):
    template_folders.style(root / "t")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert read_template(tmp_path / "link" / "t", [tmp_path / "link"]).name == "t"


# permission


@pytest.mark.parametrize("server", [None, "", "0", "true"])
@pytest.mark.parametrize("allow_code", [True, False])
def test_nothing_runs_without_the_servers_permission(root: Path, monkeypatch, server: str | None, allow_code):
    monkeypatch.delenv(PERMISSION)
    if server is not None:
        monkeypatch.setenv(PERMISSION, server)
    marker = root / "marker"
    folder = template_folders.hostile(root / "bad", marker)
    with pytest.raises(
        I2LError, match=f"start ComfyUI with the environment variable {PERMISSION}=1"
    ) as caught:
        load(folder, allow_code=allow_code)
    assert ("switch on allow_code" in str(caught.value)) is not allow_code
    assert not marker.exists()
    assert not left_behind()


def test_nothing_runs_without_the_users_permission(root: Path):
    marker = root / "marker"
    with pytest.raises(
        I2LError, match="could do anything on this computer that ComfyUI can, so it was not run"
    ) as e:
        load(template_folders.hostile(root / "bad", marker), allow_code=False)
    assert PERMISSION not in str(e.value)
    assert not marker.exists()


def test_what_is_allowed_runs(root: Path):
    """The test of the tests above: the same program does leave its mark."""
    marker = root / "marker"
    with pytest.raises(I2LError, match="did not set TEMPLATE_MODEL when it ran"):
        load(template_folders.hostile(root / "bad", marker))
    assert marker.read_text() == "executed"
    assert not left_behind()


def test_bytecode_in_the_folder_is_neither_run_nor_written(root: Path):
    """A .pyc that claims to belong to model.py would run in its place."""
    import importlib.util
    import py_compile

    marker = root / "marker"
    evil = template_folders.hostile(root / "evil", marker) / "model.py"
    folder = template_folders.write(root / "t", SIMPLE.replace("OUTPUT", LORA))
    cached = Path(importlib.util.cache_from_source(str(folder / "model.py")))
    py_compile.compile(
        str(evil), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    before = cached.read_bytes()
    load(folder).predict(pictures())
    assert not marker.exists()
    assert cached.read_bytes() == before
    cached.unlink()
    load(folder)
    assert not cached.exists()


# loading


def test_weights_are_what_the_file_holds(root: Path):
    loaded = load(template_folders.style(root / "t"), torch.bfloat16)
    expected = load_file(root / "t" / "model.safetensors")
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor.bfloat16())
    assert loaded.model.mean.dtype == torch.bfloat16  # the file does not hold it; it is real all the same
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.rank == 3  # TEMPLATE_MODEL_CONFIG


def test_parameters_are_built_without_memory_and_buffers_with(root: Path):
    init = """def __init__(self):
        super().__init__()
        self.n = torch.nn.Linear(2, 2)
        self.tied = self.n.weight
        self.register_buffer("real", torch.ones(1))
        assert self.n.weight.is_meta and self.tied is self.n.weight and not self.real.is_meta
        import threading
        other = threading.Thread(target=lambda: setattr(self, "other", torch.nn.Linear(1, 1).weight.is_meta))
        other.start(), other.join()
        assert not self.other  # what others build meanwhile is theirs
    def process"""
    program = SIMPLE.replace("def process", init) + "TEMPLATE_MODEL_PATH = 'm.safetensors'"
    folder = template_folders.write(root / "t", program, m={"x": torch.zeros(1)})
    with pytest.raises(
        I2LError, match=r"n\.bias is missing, n\.weight is missing, real is missing, tied is missing"
    ):
        load(folder)
    assert not nn.Linear(2, 2).weight.is_meta


def test_shards_are_one_network(root: Path):
    one, three = (load(template_folders.style(root / f"t{n}", shards=n)) for n in (1, 3))
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(three.model.state_dict()[name], tensor)


def test_without_weights_the_same_random_network_and_the_randomness_of_others_untouched(root: Path):
    state = torch.get_rng_state()
    folder = template_folders.style(root / "t", weights=False)
    one, two = load(folder), load(folder)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.model.look.weight, two.model.look.weight)
    assert one.model.rank == 2  # no TEMPLATE_MODEL_CONFIG without weights: so the interface is
    (tensors, _), (again, _) = one.predict(pictures()), two.predict(pictures())
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())


def _drop(tensors):
    del tensors["look.bias"]


def _add(tensors):
    tensors["more"] = torch.zeros(2)


def _reshape(tensors):
    tensors["scale"] = torch.zeros(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "look.bias is missing"),
        (_add, "more is not expected"),
        (_reshape, r"scale expected \(16,\), got \(5,\)"),
    ],
)
def test_files_that_do_not_fit(root: Path, change, message: str):
    folder = template_folders.style(root / "t")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        I2LError, match=rf"t: model.safetensors does not match the network of model.py: {message}$"
    ):
        load(folder)
    assert not left_behind()


def test_shards_that_overlap(root: Path):
    folder = template_folders.style(root / "t", shards=2)
    tensors = load_file(folder / "model-00001.safetensors")
    save_file(
        {**load_file(folder / "model-00002.safetensors"), **tensors}, folder / "model-00002.safetensors"
    )
    with pytest.raises(
        I2LError, match=r"model-00002.safetensors repeats tensors of another of its weight files: a\.0"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("'gone.safetensors'", "t: its weights gone.safetensors are missing; get them from where it was"),
        ("'../out.safetensors'", "t: its weights ../out.safetensors are outside of the folder"),
        ("'/etc/passwd'", "t: its weights /etc/passwd are outside of the folder"),
        ("'model' + '.bin'", "t: its weights model.bin are not a .safetensors file"),
        ("'.'", "t: its weights . are not a .safetensors file"),
        ("3", "TEMPLATE_MODEL_PATH must name a file or a list of files, got 3"),
        ("[None]", "TEMPLATE_MODEL_PATH must name a file or a list of files, got list"),
        ("'broken.safetensors'", "t: expected weights in broken.safetensors, but it is truncated or no"),
    ],
)
def test_weights_that_cannot_be(root: Path, path: str, message: str):
    save_file({"x": torch.zeros(1)}, root / "out.safetensors")
    program = SIMPLE.replace("OUTPUT", LORA) + f"TEMPLATE_MODEL_PATH = {path}"
    folder = template_folders.write(root / "t", program)
    (folder / "model.bin").write_bytes(b"")
    (folder / "broken.safetensors").write_bytes(b"12345678")
    with pytest.raises(I2LError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert not left_behind()


def test_what_is_wrong_without_running_is_said_without_running(root: Path):
    marker = root / "marker"
    folder = template_folders.hostile(root / "t", marker)
    with (folder / "model.py").open("a") as file:
        file.write("TEMPLATE_MODEL_PATH = 'gone.safetensors'")
    with pytest.raises(I2LError, match=r"gone\.safetensors are missing"):
        load(folder)
    assert not marker.exists()


def test_a_package_that_is_missing(root: Path):
    program = "from no_such_package.models import Encoder\nTEMPLATE_MODEL = Encoder"
    with pytest.raises(I2LError) as caught:
        load(template_folders.write(root / "t", program))
    assert str(caught.value) == (
        "t: its model.py needs the Python package no_such_package, which is not installed; if you trust it, run "
        f"{sys.executable} -m pip install no_such_package and start ComfyUI again"
    )
    assert not left_behind()


def test_a_name_that_another_version_of_a_package_has(root: Path):
    """transformers 5.24 has no SiglipVisionTransformer, which the program of a published template imports."""
    program = "from numpy import NoSuchEncoder\nTEMPLATE_MODEL = NoSuchEncoder"
    with pytest.raises(I2LError) as caught:
        load(template_folders.write(root / "t", program))
    version = importlib.metadata.version("numpy")
    assert str(caught.value) == (
        f"t: its model.py needs NoSuchEncoder of the Python package numpy, which numpy {version} that is installed "
        "does not have; get a newer model.py from where it was published, or install the version of numpy that it "
        "was written for, if ComfyUI runs with it"
    )
    assert not left_behind()


def test_an_import_that_fails_otherwise(root: Path):
    program = "raise ImportError('DLL load failed')"
    with pytest.raises(
        I2LError, match=r"t: its model\.py failed when it was started: ImportError: DLL load failed"
    ):
        load(template_folders.write(root / "t", program + "\nTEMPLATE_MODEL = 1"))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise KeyError('first\\nsecond')", "failed when it was started: KeyError: 'first"),
        ("import sys\nsys.exit('bye')", "failed when it was started: SystemExit: bye"),
        ("raise ValueError", "failed when it was started: ValueError"),
        (
            SIMPLE.replace("def process", "def __init__(self, x):\n        pass\n    def process"),
            "network was built",
        ),
        (SIMPLE.replace("def forward", "def backward"), "forward"),
        (
            SIMPLE.replace("forward(self, **kwargs)", "forward(self, kwargs=None)"),
            r"forward of its network does not accept",
        ),
        (SIMPLE.replace("process_inputs", "process"), "its network has no process_inputs"),
    ],
)
def test_programs_that_do_not_start(root: Path, program: str, message: str):
    with pytest.raises(I2LError, match=message) as caught:
        load(template_folders.write(root / "t", program + "\nTEMPLATE_MODEL = globals().get('Net')"))
    assert "\n" not in str(caught.value)
    assert not left_behind()


def test_a_network_that_is_no_module(root: Path):
    program = SIMPLE.replace("(torch.nn.Module)", "").replace("OUTPUT", LORA)
    tensors, _ = load(template_folders.write(root / "t", program)).predict(pictures())
    assert tensors["x.lora_A.weight"].tolist() == [[1, 1]]
    folder = template_folders.write(
        root / "u", program + "TEMPLATE_MODEL_PATH = 'm.safetensors'", m={"x": torch.ones(1)}
    )
    with pytest.raises(I2LError, match="u: it has weights, but TEMPLATE_MODEL is not a network: Net"):
        load(folder)


def test_the_program_knows_its_module_and_its_folder_and_goes_when_the_template_does(root: Path):
    program = """
from __future__ import annotations
import dataclasses, pathlib
@dataclasses.dataclass
class Config:
    text: str = pathlib.Path(__file__).with_name("words.txt").read_text()
""" + SIMPLE.replace("from __future__", "").replace("return {}", "return {'x': Config()}")
    folder = template_folders.write(root / "t", program.replace("OUTPUT", LORA))
    (folder / "words.txt").write_text("hello")
    loaded = load(folder)
    assert len(left_behind()) == 1
    assert sys.modules[left_behind()[0]].Config().text == "hello"
    loaded.predict(pictures())
    del loaded
    gc.collect()
    assert not left_behind()


# predicting


def test_a_prediction_owns_its_memory(root: Path):
    program = SIMPLE.replace(
        "    def process",
        "    def __init__(self):\n        super().__init__()\n"
        "        self.w = torch.nn.Parameter(torch.ones(2, 2))\n    def process",
        1,
    ).replace("OUTPUT", '{"lora": {"x.lora_A.weight": self.w, "x.lora_B.weight": self.w.T}, "b": 1, "a": 2}')
    loaded = load(template_folders.write(root / "t", program))
    tensors, others = loaded.predict(pictures())
    loaded.model.w.zero_()
    assert tensors["x.lora_A.weight"].tolist() == tensors["x.lora_B.weight"].tolist() == [[1, 1], [1, 1]]
    assert others == ("a", "b")


def test_a_program_may_change_its_pictures(root: Path):
    program = SIMPLE.replace(
        "return {}", "image[0].thumbnail((4, 4))\n        return {'size': image[1].size}"
    )
    program = program.replace("OUTPUT", '{"lora": {}, str(kwargs["size"]): 0}')
    picture = pictures(1)[0]
    _, others = load(template_folders.write(root / "t", program)).predict([picture, picture])
    assert others == ("(20, 30)",)
    assert picture.size == (20, 30)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("None", "t: its program must return a dict, got NoneType"),
        ("{}", "t: expected its program to return a lora, it returned nothing"),
        (
            "{'text_embedding': 1, 'kv_cache': {}}",
            "it returned only kv_cache, text_embedding: load it with Load Template",
        ),
        ("{'lora': torch.ones(2)}", "t: expected its lora to be a dict of tensors, got Tensor"),
        ("{'lora': {'x': [1]}}", "t: expected its lora to be tensors by name, got list as 'x'"),
        ("{'lora': {3: torch.ones(1)}}", "t: expected its lora to be tensors by name, got Tensor as 3"),
        ("1 / 0", "t: its model.py failed in forward: ZeroDivisionError: division by zero"),
        ("[o for o in open('/nowhere/else')]", "failed in forward: FileNotFoundError: "),
        ("__import__('no_such_package')", "needs the Python package no_such_package"),
        ("{'lora': None}", "expected its program to return a lora, it returned nothing"),
        ("{'kv_cache': [1]}", "t: expected its kv_cache to be a dict of blocks, got list"),
        (
            "{'kv_cache': {'double_0': torch.ones(1)}}",
            "t: expected its kv_cache to be keys and values by block, got Tensor as 'double_0'",
        ),
        ("{'input_image': torch.ones(1)}", "t: expected its input_image to be a PIL picture, got Tensor"),
    ],
)
def test_programs_that_do_not_predict(root: Path, output: str, message: str):
    loaded = load(template_folders.write(root / "t", SIMPLE.replace("OUTPUT", output)))
    with pytest.raises(I2LError) as caught:
        loaded.predict(pictures())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_little_memory_is_for_the_host_to_answer(root: Path):
    program = SIMPLE.replace("return OUTPUT", "raise torch.cuda.OutOfMemoryError('too big')")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        load(template_folders.write(root / "t", program)).predict(pictures())


def test_no_working_folder_is_needed(root: Path, tmp_path: Path, monkeypatch):
    folder = template_folders.style(root / "t")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = sorted(os.listdir(folder))
    load(folder).predict(pictures())
    assert sorted(os.listdir(folder)) == before


# what is published


@pytest.mark.parametrize("page", ["LoadI2LPredictor.md", "LoadI2LPredictor/zh.md"])
def test_the_help_lists_every_published_predictor(page: str):
    text = (ROOT / "web" / "docs" / page).read_text("utf-8")
    for known in PUBLISHED:
        model = find_model(known.base_model)
        assert model is not None
        (row,) = [line for line in text.splitlines() if line.startswith(f"| [{known.name}]({known.url}) | ")]
        assert f"| {model.title} |" in row
        assert all(f"`{file}`" in row for file in known.files)
        place = f"models/{known.folder}" if known.files else f"models/{known.folder}/{known.name}"
        assert row.endswith(f"| `{place}` |")


REAL = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.emb2lora = torch.nn.Module()
        self.emb2lora.scale = torch.nn.Parameter(torch.empty(1))
    def process_inputs(self, image, pipe=None, **kwargs):
        return {}
    def forward(self, pipe=None, **kwargs):
        lora = {}
        for name, (d_in, d_out) in TARGETS.items():
            lora[f"{name}.lora_A.default.weight"] = self.emb2lora.scale.expand(4, d_in)
            lora[f"{name}.lora_B.default.weight"] = self.emb2lora.scale.expand(d_out, 4)
        return {"lora": lora}
TEMPLATE_MODEL = Net
TEMPLATE_MODEL_PATH = "model.safetensors"
"""


def test_what_is_known_of_the_published_predictor_for_z_image(root: Path):
    """People who ran ZImage-i2L-v2 on three pictures report 476 tensors of rank 4, 19.9 MB in bfloat16, of the layers
    that version 1 adapts; its weights are under emb2lora."""
    model = find_model("z-image")
    assert model is not None
    v1 = V1Config(Z_IMAGE, model, token_dim=1, code=1)
    targets = {layer.name: (layer.d_in, layer.d_out) for layer in v1.adapted_layers}
    program = REAL.replace("TARGETS", repr(targets))
    weights = {"emb2lora.scale": torch.ones(1)}
    folder = template_folders.write(root / "ZImage-i2L-v2", program, model=weights)
    tensors, others = load(folder, torch.bfloat16).predict(pictures(3))
    assert (len(tensors), others) == (476, ())
    assert len(save(tensors)) / 1e6 == pytest.approx(19.9, abs=0.05)
    lora = from_state_dict(tensors)
    assert (lora.base_model, lora.rank, lora.n_layers) == ("z-image", 4, 238)
    assert lora.layers.keys() == {layer.target for layer in v1.adapted_layers}
    blocks = {target.weight.split(".")[0] for target in lora.layers}
    assert blocks == {"layers", "noise_refiner", "context_refiner"}


def test_where_to_get_what_is_missing():
    assert where_to_get("zimage-i2l-V2") == (
        "get all files of https://modelscope.cn/models/DiffSynth-Studio/ZImage-i2L-v2 into models/i2l/ZImage-i2L-v2"
    )
    assert where_to_get("Z-Image-i2L") == (
        "get model.safetensors of https://modelscope.cn/models/DiffSynth-Studio/Z-Image-i2L into models/i2l/Z-Image-i2L"
    )
    assert where_to_get("mine") == "get them from where it was published"
