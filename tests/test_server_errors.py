"""Bad input on the real server: one clear line at the node, nothing changed on disk, and the next run works."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import template_folders
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_world import save_random_predictor

from i2l.tools.comfy_client import ComfyClient, PromptRefused
from i2l.tools.comfy_server import ComfyServer

pytestmark = pytest.mark.server

Prompt = dict[str, dict[str, Any]]
PICTURE = ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0x3366CC})
DEMO = ("LoadI2LDemo", {})


@pytest.fixture
def predictors(comfy_server: ComfyServer) -> Path:
    folder = comfy_server.base / "models" / "i2l"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def graph(**nodes: tuple[str, dict[str, Any]]) -> Prompt:
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def predict(**images: Any) -> tuple[str, dict[str, Any]]:
    return ("ImagesToLoRA", {"predictor": ["load", 0], **{f"images.{k}": v for k, v in images.items()}})


def saved(name: str = "must not exist", lora: Any = ("predict", 0)) -> tuple[str, dict[str, Any]]:
    return ("SavePredictedLoRA", {"lora": list(lora), "filename": name})


def files(server: ComfyServer) -> set[str]:
    return {str(p) for part in ("models", "output") for p in (server.base / part).rglob("*") if p.is_file()}


def refused(server: ComfyServer, prompt: Prompt, node: str) -> str:
    """The message at the node that failed; nothing else may have happened."""
    before = files(server)
    result = server.client().queue(prompt)
    assert result.status == "error"
    assert result.error is not None
    assert result.error["node_id"] == node
    assert result.error["exception_type"].endswith("I2LError")
    assert files(server) == before
    message = result.error["exception_message"].strip()
    assert "\n" not in message
    return message


# predictor files


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def missing(path: Path) -> None:
    tensors, metadata = _read(path)
    del tensors["predictor.queries"]
    save_file(tensors, path, metadata)


def extra(path: Path) -> None:
    tensors, metadata = _read(path)
    save_file({**tensors, "predictor.more": torch.zeros(2, dtype=torch.bfloat16)}, path, metadata)


def misshapen(path: Path) -> None:
    tensors, metadata = _read(path)
    tensors["predictor.queries"] = tensors["predictor.queries"][:-1].contiguous()
    save_file(tensors, path, metadata)


def not_finite(path: Path) -> None:
    tensors, metadata = _read(path)
    tensors["encoder.post_layernorm.bias"] = tensors["encoder.post_layernorm.bias"].fill_(float("nan"))
    save_file(tensors, path, metadata)


def without_metadata(path: Path) -> None:
    save_file(_read(path)[0], path)


def from_the_future(path: Path) -> None:
    tensors, metadata = _read(path)
    save_file(tensors, path, {"i2l": json.dumps({**json.loads(metadata["i2l"]), "version": 9})})


def a_lora(path: Path) -> None:
    save_file({"diffusion_model.x.lora_up.weight": torch.zeros(2, 2)}, path)


def a_checkpoint(path: Path) -> None:
    save_file({"model.diffusion_model.input_blocks.0.weight": torch.zeros(2, 2)}, path)


def a_pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x04never read")


def a_lie(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "it is truncated or not a safetensors file"),
        (missing, "predictor.queries is missing"),
        (extra, "predictor.more is not expected"),
        (misshapen, "predictor.queries expected ("),
        (not_finite, "encoder.post_layernorm.bias holds NaN or infinite values"),
        (without_metadata, "it has no i2l metadata"),
        (from_the_future, "version 9 is not known"),
        (a_lora, "it is a LoRA; put it into models/loras"),
        (a_checkpoint, "it is a diffusion checkpoint"),
        (a_pickle, "it is a pickle, which is never read"),
        (a_lie, "it is truncated or not a safetensors file"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_predictor_files(comfy_server: ComfyServer, predictors: Path, damage, message: str):
    path = save_random_predictor(predictors / f"{damage.__name__}.safetensors")
    damage(path)
    load = ("LoadI2LPredictor", {"predictor_name": path.name})
    prompt = graph(load=load, picture=PICTURE, predict=predict(image0=["picture", 0]), save=saved())
    found = refused(comfy_server, prompt, "load")
    path.unlink()
    assert found.startswith(f"{path.name}: ")
    assert message in found


def test_a_predictor_that_is_not_there(comfy_server: ComfyServer, predictors: Path):
    load = ("LoadI2LPredictor", {"predictor_name": "gone.safetensors"})
    prompt = graph(load=load, picture=PICTURE, predict=predict(image0=["picture", 0]), save=saved())
    with pytest.raises(PromptRefused, match=r"there is no predictor"):
        comfy_server.client().queue(prompt)


def test_a_predictor_for_another_base_model(comfy_server: ComfyServer, predictors: Path):
    path = save_random_predictor(predictors / "klein.safetensors", "flux2-klein-4b")
    prompt = graph(
        load=("LoadI2LPredictor", {"predictor_name": path.name}),
        demo=DEMO,
        picture=PICTURE,
        predict=predict(image0=["picture", 0]),
        apply=("ApplyPredictedLoRA", {"model": ["demo", 0], "lora": ["predict", 0], "strength": 1.0}),
        text=("CLIPTextEncode", {"clip": ["demo", 1], "text": "one star"}),
        latent=("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        sample=(
            "KSampler",
            {
                "model": ["apply", 0],
                "positive": ["text", 0],
                "negative": ["text", 0],
                "latent_image": ["latent", 0],
                "seed": 1,
                "steps": 1,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        ),
        decode=("VAEDecode", {"samples": ["sample", 0], "vae": ["demo", 2]}),
        save=("SaveImage", {"images": ["decode", 0], "filename_prefix": "must not exist"}),
    )
    found = refused(comfy_server, prompt, "apply")
    path.unlink()
    assert "FLUX.2 klein 4B (flux2-klein-4b)" in found
    assert "(i2l-tiny)" in found


# programs


@pytest.mark.parametrize("allow_code", [True, False])
def test_a_program_does_not_run_whatever_the_prompt_and_the_settings_say(
    comfy_server: ComfyServer, server: ComfyClient, predictors: Path, tmp_path: Path, allow_code: bool
):
    """The server was started without permission: nothing that comes over the network gives it."""
    marker = tmp_path / "marker"
    folder = template_folders.hostile(predictors / "hostile", marker)
    combo = server.object_info()["LoadI2LPredictor"]["input"]["required"]["predictor_name"]
    server.post("/settings", {"I2L_ALLOW_TEMPLATE_CODE": "1", "i2l.allow_code": True})
    load = ("LoadI2LPredictor", {"predictor_name": "hostile/", "allow_code": allow_code})
    prompt = graph(load=load, picture=PICTURE, predict=predict(image0=["picture", 0]), save=saved())
    found = refused(comfy_server, prompt, "load")
    assert "hostile/" in json.dumps(combo)
    assert "it brings a program, model.py" in found
    assert "start ComfyUI with the environment variable I2L_ALLOW_TEMPLATE_CODE=1" in found
    assert ("switch on allow_code" in found) is not allow_code
    assert not marker.exists()
    assert [path.name for path in folder.iterdir()] == ["model.py"]
    shutil.rmtree(folder)


# pictures


def upload(client: ComfyClient, name: str, mode: str, size: tuple[int, int]) -> str:
    data = io.BytesIO()
    Image.new(mode, size, 128 if mode == "L" else (200, 100, 50, 10)[: len(mode)]).save(data, "PNG")
    return client.upload(name, data.getvalue())


def picture_prompt(image: str) -> Prompt:
    prompt = graph(
        demo=DEMO,
        picture=("LoadImage", {"image": image}),
        predict=predict(image0=["picture", 0]),
        save=saved(),
    )
    prompt["predict"]["inputs"]["predictor"] = ["demo", 3]
    return prompt


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 1), "images.image0: the picture is 1x1; a reference needs at least 8 pixels a side"),
        ((20000, 30), "images.image0: the picture is 20000x30; a reference may be at most 16 times as long"),
    ],
)
def test_bad_pictures(comfy_server: ComfyServer, server: ComfyClient, size: tuple[int, int], message: str):
    image = upload(server, f"bad{size[0]}.png", "RGB", size)
    assert refused(comfy_server, picture_prompt(image), "predict").startswith(message)


def test_no_picture_at_all(comfy_server: ComfyServer):
    prompt = graph(demo=DEMO, predict=predict(), save=saved())
    prompt["predict"]["inputs"]["predictor"] = ["demo", 3]
    assert "expected at least one reference picture" in refused(comfy_server, prompt, "predict")


@pytest.mark.parametrize(
    "inputs",
    [
        {"image0": ["picture", 0]},
        {"images": {"image0": ["picture", 0]}},
        {"images": ["picture", 0]},
        {"images": "picture.png"},
        {"images.image0": ["picture", 0], "images.image64": ["picture", 0]},
        {"images.image0": ["picture", 0], "images": {"image1": ["picture", 0]}},
        {"images.image0": ["picture", 0], "image1": ["picture", 0]},
    ],
    ids=["flat", "nested", "link", "text", "too many", "one nested", "one flat"],
)
def test_a_key_of_images_that_is_not_one_of_its_sockets(comfy_server: ComfyServer, inputs: dict[str, Any]):
    """Never a LoRA of fewer pictures than the prompt names, nor an error of Python's."""
    prompt = graph(
        demo=DEMO,
        picture=PICTURE,
        predict=("ImagesToLoRA", {"predictor": ["demo", 3], **inputs}),
        save=saved(),
    )
    found = refused(comfy_server, prompt, "predict")
    assert found.startswith("this node has no input image")
    assert found.endswith("images.image0 to images.image63")


FUSION = {"loras": "2", "method": "concat", "loras.weight_1": 1.0, "loras.weight_2": 1.0}
LINKS = {f"loras.lora_{n}": ["predict", 0] for n in (1, 2)}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"loras": {"loras": "2"}, "method": {"method": "concat"}}, "loras must be a string"),
        ({**FUSION, **LINKS, "loras": 2}, "loras must be a string"),
        ({**FUSION, **LINKS, "method": "sum"}, "method a name such as"),
        ({**FUSION, **LINKS, "loras": ["predict", 0]}, "take no cable"),
        ({**FUSION, **LINKS, "method": ["predict", 0]}, "take no cable"),
        ({**FUSION, "lora_1": ["predict", 0]}, "this node has no input lora_1"),
        ({**FUSION, **LINKS, "loras.lora_3": ["predict", 0]}, "this node has no input loras.lora_3"),
    ],
    ids=["nested", "a number", "no such method", "link on loras", "link on method", "flat", "too many"],
)
def test_keys_of_fuse_loras(comfy_server: ComfyServer, inputs: dict[str, Any], message: str):
    prompt = graph(
        demo=DEMO, picture=PICTURE, predict=predict(image0=["picture", 0]), fuse=("FuseLoRAs", inputs),
        save=saved(lora=("fuse", 0)),
    )  # fmt: skip
    prompt["predict"]["inputs"]["predictor"] = ["demo", 3]
    found = refused(comfy_server, prompt, "fuse")
    assert message in found
    assert "loras.lora_1" in found


def test_a_folder_with_backslashes_runs(comfy_server: ComfyServer, server: ComfyClient):
    folder = comfy_server.input / "from_windows" / "styles" / "ink"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 48), "black").save(folder / "one.png")
    prompt = graph(
        demo=DEMO,
        styles=("ImagesFromFolder", {"folder": "from_windows\\styles", "most_pictures": 8}),
        predict=("ImagesToLoRA", {"predictor": ["demo", 3], "images.image0": ["styles", 0]}),
        save=saved("from_windows"),
    )
    result = server.queue(prompt)
    assert result.ok, result.error_message
    prompt["styles"]["inputs"]["folder"] = "from_windows\\gone"
    with pytest.raises(PromptRefused, match="there is no folder"):
        server.queue(prompt)


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_pictures_with_alpha_or_one_channel_are_fine(server: ComfyClient, mode: str):
    image = upload(server, f"good{mode}.png", mode, (40, 70))
    prompt = picture_prompt(image)
    prompt["save"]["inputs"]["filename"] = f"good/{mode}"
    assert server.queue(prompt).ok


# saving


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "a/../../escape", " ", "C:\\escape"])
def test_names_that_leave_the_folder(comfy_server: ComfyServer, name: str):
    prompt = graph(demo=DEMO, picture=PICTURE, predict=predict(image0=["picture", 0]), save=saved(name))
    prompt["predict"]["inputs"]["predictor"] = ["demo", 3]
    assert refused(comfy_server, prompt, "save").startswith("cannot save under the name")
    assert not list(comfy_server.base.rglob("*escape*"))
