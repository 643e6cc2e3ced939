"""LoRA Preview on the real host: a picture as an IMAGE and on the node, of our LoRAs and of core's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import build, lora_for

from i2l.i2l_core.errors import I2LError


@pytest.fixture(scope="module")
def sockets(host):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    patcher = build("lumina2")
    one, two = (PredictedLoRA(lora_for(patcher, seed, base_model="i2l-tiny")) for seed in (1, 2))
    return one, dict(two)


@pytest.fixture
def temp(host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def run(*args, **settings):
    from i2l.nodes.preview import LoRAPreview

    return LoRAPreview.execute(*args, **settings)


@pytest.mark.parametrize("compared", [False, True])
def test_the_picture_comes_out_and_is_on_the_node(sockets, temp: Path, compared: bool):
    out = run(sockets[0], width=800, compare=sockets[1] if compared else None)
    assert out[0].shape == (1, 600, 800, 3)
    on_the_node: Any = out.ui
    (shown,) = on_the_node.as_dict()["images"]
    with Image.open(temp / shown["subfolder"] / shown["filename"]) as image:
        assert image.size == (800, 600)
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    assert torch.equal(pixels.view(600, 800, 3), (out[0][0] * 255).to(torch.uint8))


def test_what_cannot_be_drawn_is_refused(sockets, temp: Path):
    with pytest.raises(I2LError, match="expected a LORA_MODEL"):
        run("lora")
    with pytest.raises(I2LError, match="full weight differences"):
        run(sockets[0], compare={"diffusion_model.x.diff": torch.zeros(2)})
    assert not list(temp.iterdir())
