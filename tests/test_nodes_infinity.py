"""The nodes of Infinity, on tiny files in ComfyUI's own folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import infinity_models as models
import pytest
import torch
from safetensors.torch import save_file

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.bits import features
from i2l.i2l_core.infinity.coder import CoderConfig
from i2l.i2l_core.infinity.scales import scales_of

CODER = CoderConfig(bits=8, base=32, encoder=(32,) * 5, decoder=(32,) * 5, res_blocks=1)
SMALL: dict[str, Any] = {"size": "0.06M", "aspect": "3:2", "seed": 3, "cfg": 3.0, "batch_size": 1}


@pytest.fixture
def folders(host, tmp_path: Path, monkeypatch) -> Path:
    import folder_paths

    contents = {
        "diffusion_models": ("model.safetensors", models.released_weights()),
        "vae": ("vae.safetensors", models.coder_weights(CODER)),
    }
    for folder, (name, weights) in contents.items():
        (tmp_path / folder).mkdir()
        save_file(weights, tmp_path / folder / name)
        where = ([str(tmp_path / folder)], folder_paths.supported_pt_extensions)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, where)
        monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def given(node: Any, **inputs: Any) -> Any:
    with torch.inference_mode():
        return node.execute(**inputs)


@pytest.fixture
def loaded(folders: Path) -> tuple[Any, Any]:
    from i2l.nodes.infinity_load import LoadInfinity, LoadInfinityVAE

    model = given(LoadInfinity, model_name="model.safetensors")[0]
    return model, given(LoadInfinityVAE, vae_name="vae.safetensors")[0]


def words(name: str, rows: int) -> list:
    return [[models.numbers(name, 1, rows, models.TEXT), {"pooled_output": None}]]


def test_files_are_offered_and_checked(folders: Path):
    from i2l.nodes.infinity_load import LoadInfinity, LoadInfinityVAE

    schema = LoadInfinity.define_schema()
    assert schema.inputs[0].options == ["model.safetensors"]
    assert LoadInfinity.validate_inputs("model.safetensors") is True
    assert "choose one from the list" in str(LoadInfinityVAE.validate_inputs("model.safetensors"))
    before = LoadInfinity.fingerprint_inputs("model.safetensors")
    save_file(models.released_weights(depth=2, chunks=1), folders / "diffusion_models" / "model.safetensors")
    assert LoadInfinity.fingerprint_inputs("model.safetensors") != before


def test_a_picture_in_the_style_of_pictures_and_of_words(loaded):
    from comfy_execution.graph_utils import ExecutionBlocker

    from i2l.nodes.infinity_sample import InfinitySampler
    from i2l.nodes.infinity_style import InfinityStyleFromPictures, InfinityStyleFromWords

    model, vae = loaded
    prompt = {"model": model, "positive": words("text", 7), **SMALL}
    plain, same = given(InfinitySampler, **prompt).result
    assert torch.equal(plain["samples"], same["samples"])
    pictures = given(InfinityStyleFromPictures, vae=vae, image=torch.rand(2, 64, 80, 3), alpha=0.5)[0]
    assert len(pictures.references) == 2
    styled, content = given(InfinitySampler, style=pictures, preview_vae=vae, **prompt).result
    assert torch.equal(content["samples"], plain["samples"])
    assert not torch.equal(styled["samples"], plain["samples"])
    by_words = given(InfinityStyleFromWords, conditioning=words("negative", 11), structure_end=0.5)[0]
    styled, content = given(InfinitySampler, style=by_words, **prompt).result
    assert not torch.equal(styled["samples"], plain["samples"])
    assert isinstance(content, ExecutionBlocker)
    assert "set structure_end" in content.message


def test_defaults_of_the_style_are_those_of_the_core(loaded):
    from i2l.i2l_core.infinity.style import StyleSettings
    from i2l.nodes.infinity_style import InfinityStyleFromPictures, InfinityStyleFromWords

    for node in (InfinityStyleFromPictures, InfinityStyleFromWords):
        widgets = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
        inputs = {"vae": loaded[1], "image": torch.rand(1, 64, 64, 3)}
        if node is InfinityStyleFromWords:
            inputs = {"conditioning": words("text", 7)}
        assert given(node, **inputs, **widgets)[0].settings == StyleSettings()


def test_other_vaes_are_refused(loaded):
    from i2l.nodes.infinity_style import InfinityStyleFromPictures

    with pytest.raises(I2LError, match="use Load Infinity VAE"):
        given(InfinityStyleFromPictures, vae=object(), image=torch.rand(1, 64, 64, 3))


def test_a_start_keeps_the_coarse_part_of_a_picture(loaded):
    import nodes
    from i2l.i2l_core.host.infinity.sample import ASPECTS
    from i2l.nodes.infinity_sample import InfinitySampler
    from i2l.nodes.infinity_start import InfinityStartFromPicture

    model, vae = loaded
    prompt = {"model": model, "positive": words("text", 7), **SMALL}
    plain = given(InfinitySampler, **prompt)[0]["samples"]
    picture = torch.rand(1, plain.shape[2] * 16, plain.shape[3] * 16, 3)
    with torch.inference_mode():
        (latent,) = nodes.VAEEncode().encode(vae, picture)
    found = {
        kept: given(
            InfinitySampler,
            start=given(InfinityStartFromPicture, latent=latent, scales_kept=kept)[0],
            **prompt,
        )[0]["samples"]
        for kept in (0, 3, 7)
    }
    assert torch.equal(found[0], plain)
    assert not torch.equal(found[3], plain)
    scales = scales_of(ASPECTS[SMALL["aspect"]], SMALL["size"])
    assert torch.equal(found[7], features(latent["samples"], scales, False).sums[-1])
