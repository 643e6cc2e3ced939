"""The nodes of Infinity, on tiny files in ComfyUI's own folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import infinity_models as models
import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.bits import features
from i2l.i2l_core.infinity.files import coder_weights
from i2l.i2l_core.infinity.scales import scales_of

SMALL: dict[str, Any] = {"size": "0.06M", "aspect": "3:2", "seed": 3, "cfg": 3.0, "batch_size": 1}


@pytest.fixture
def folders(host, tmp_path: Path, monkeypatch) -> Path:
    import folder_paths

    contents = {
        "diffusion_models": ("model.safetensors", models.released_weights()),
        "vae": ("vae.safetensors", models.coder_weights(models.CODER_16)),
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
    from i2l.i2l_core.host.infinity.vae import InfinityVAE
    from i2l.nodes.infinity_sample import InfinitySampler
    from i2l.nodes.infinity_style import InfinityStyleFromPictures

    model, _ = loaded
    picture = torch.rand(1, 64, 64, 3)
    with pytest.raises(I2LError, match="use Load Infinity VAE"):
        given(InfinityStyleFromPictures, vae=object(), image=picture)
    config = replace(models.CODER_16, bits=16)
    other = InfinityVAE(config, coder_weights(models.coder_weights(config)))
    style = given(InfinityStyleFromPictures, vae=other, image=picture)[0]
    prompt = {"model": model, "positive": words("text", 7), **SMALL}
    for wrong in ({"style": style}, {"preview_vae": other}):
        with pytest.raises(I2LError, match=r"writes 16 bits, the model reads 8; load infinity_vae_d32reg"):
            given(InfinitySampler, **prompt, **wrong)


def states(length: int, width: int = models.TEXT, **options: Any) -> list:
    return [[torch.randn(1, length, width), options]]


@pytest.mark.parametrize(
    ("conditioning", "problem"),
    [
        (lambda: [], "expected a prompt, got empty CONDITIONING; use CLIP Text Encode"),
        (lambda: states(7, 48), "a prompt of width 128.*flan-t5-xl gives 2048, T5-XXL 4096"),
        (lambda: states(33), "a prompt of 1 to 32 tokens, got 33; shorten it"),
        (lambda: states(7, area=(1, 1, 0, 0)), "a prompt has area, which Infinity has no use for"),
        (lambda: states(7, mask=torch.ones(1, 8, 8)), "a prompt has mask, which Infinity has no use for"),
        (lambda: states(7) + states(7), "a prompt for scale 1 of 7, got 2; give each a timestep range"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(loaded, conditioning: Any, problem: str):
    from i2l.nodes.infinity_sample import InfinitySampler
    from i2l.nodes.infinity_style import InfinityStyleFromWords

    prompt = {"model": loaded[0], "positive": states(7), **SMALL}
    with pytest.raises(I2LError, match=problem):
        given(InfinitySampler, **{**prompt, "positive": conditioning()})
    for place, entry in (
        ("a negative prompt", {"negative": conditioning()}),
        (
            "a prompt of the style|a prompt",
            {"style": given(InfinityStyleFromWords, conditioning=conditioning())[0]},
        ),
    ):
        with pytest.raises(I2LError, match=problem.replace("a prompt", f"({place})")):
            given(InfinitySampler, **prompt, **entry)


def test_a_style_after_a_scale_that_is_not_drawn_is_refused(loaded):
    from i2l.nodes.infinity_sample import InfinitySampler
    from i2l.nodes.infinity_style import InfinityStyleFromPictures, InfinityStyleFromWords

    model, vae = loaded
    for style in (
        given(InfinityStyleFromPictures, vae=vae, image=torch.rand(1, 64, 64, 3), scale=8),
        given(InfinityStyleFromWords, conditioning=words("text", 7), scale=8),
    ):
        with pytest.raises(I2LError, match="a style scale from 1 to 7, got 8; choose an earlier scale"):
            given(InfinitySampler, model=model, positive=words("text", 7), style=style[0], **SMALL)


def test_other_latents_are_no_start(loaded):
    from i2l.i2l_core.host.infinity.sample import ASPECTS
    from i2l.nodes.infinity_sample import InfinitySampler
    from i2l.nodes.infinity_start import InfinityStartFromPicture

    size = scales_of(ASPECTS[SMALL["aspect"]], SMALL["size"]).last
    right = torch.randn(1, 8, *size)
    for latent, problem in (
        ({"samples": torch.randn(1, 4, *size)}, "a LATENT of 8 channels to start from.*use VAE Encode"),
        ({"samples": torch.randn(1, 8, 1, *size)}, "a LATENT of 8 channels to start from.*use VAE Encode"),
        ({"samples": torch.zeros(1, 8, *size)}, "this LATENT is empty"),
        ({"samples": torch.randn(1, 8, 16, 16)}, "encode the picture at the size that is drawn"),
        ({"samples": right.expand(2, -1, -1, -1)}, "a start of 1 or 1 pictures, got 2"),
        ({"samples": right, "noise_mask": torch.ones(1, 8, 8)}, "use VAE Encode without a mask"),
    ):
        start = given(InfinityStartFromPicture, latent=latent)[0]
        with pytest.raises(I2LError, match=problem):
            given(InfinitySampler, model=loaded[0], positive=words("text", 7), start=start, **SMALL)
    start = given(InfinityStartFromPicture, latent={"samples": right}, scales_kept=8)[0]
    with pytest.raises(I2LError, match="0 to 7 scales to keep, got 8; keep fewer"):
        given(InfinitySampler, model=loaded[0], positive=words("text", 7), start=start, **SMALL)


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


@pytest.mark.parametrize("drawn", ["a picture", "zeros", "as many channels"])
def test_samplers_of_diffusion_models_refuse_its_pictures(loaded, drawn: str):
    from comfy.samplers import CFGGuider, sampler_object
    from comfy_extras.nodes_custom_sampler import RandomNoise, SamplerCustomAdvanced

    import nodes
    from i2l.i2l_core.host.infinity.latent import latent_of
    from i2l.nodes.infinity_sample import InfinitySampler

    latent = given(InfinitySampler, model=loaded[0], positive=words("text", 7), **SMALL)[0]
    if drawn != "a picture":
        latent = latent_of(torch.zeros(1, 8, 8, 8) if drawn == "zeros" else torch.randn(1, 16, 8, 8))
    other, text = tiny_models.build("lumina2"), tiny_models.conditioning("lumina2", 0)
    for one in (latent, latent.copy()):
        with pytest.raises(I2LError, match="which a diffusion model cannot sample; use VAE Decode"):
            nodes.KSampler().sample(other, 0, 1, 3.0, "euler", "simple", text, text, one)
        with pytest.raises(I2LError, match="which a diffusion model cannot sample; use VAE Decode"):
            given(
                SamplerCustomAdvanced,
                noise=RandomNoise.execute(0)[0],
                guider=CFGGuider(other),
                sampler=sampler_object("euler"),
                sigmas=torch.tensor([1.0, 0.0]),
                latent_image=one,
            )


def test_its_pictures_go_through_the_nodes_of_latents(loaded):
    import nodes
    from i2l.nodes.infinity_sample import InfinitySampler

    model, vae = loaded
    latent = given(InfinitySampler, model=model, positive=words("text", 7), **{**SMALL, "batch_size": 2})[0]
    with torch.inference_mode():
        (picture,) = nodes.VAEDecode().decode(vae, latent)
        (tiled,) = nodes.VAEDecodeTiled().decode(vae, latent, 512, 64)
        (one,) = nodes.LatentFromBatch().frombatch(latent, 1, 1)
        (second,) = nodes.VAEDecode().decode(vae, one)
    assert picture.shape == tiled.shape
    torch.testing.assert_close(second[0], picture[1])
    assert not torch.allclose(second[0], picture[0])


@pytest.mark.parametrize(
    ("bits", "name", "warned"),
    [
        (32, "infinity_vae_d32.pth", True),
        (32, "infinity_vae_d32reg.pth", False),
        (32, "infinity_vae_d32_reg.pth", False),
        (32, "mine.safetensors", False),
        (8, "infinity_vae_d32.pth", False),
    ],
)
def test_a_vae_that_its_name_betrays_is_warned_about(host, bits: int, name: str, warned: bool):
    from i2l.i2l_core.host.infinity.cards import vae_card
    from i2l.i2l_core.host.infinity.vae import InfinityVAE

    config = replace(models.CODER_16, bits=bits)
    card = vae_card(InfinityVAE(config, coder_weights(models.coder_weights(config))), name)
    assert [one["id"] for one in card["warnings"]] == ["infinity_vae"] * warned


@pytest.mark.parametrize(
    ("sizes", "places", "warned"),
    [
        ((2048, 32), (48, 48), True),
        ((2048, 32), (64, 64), False),
        ((2048, 32), (45, 90), False),
        ((64, 4), (48, 48), False),
    ],
)
def test_pictures_that_are_too_small_for_the_2b_are_warned_about(loaded, sizes, places, warned: bool):
    from i2l.i2l_core.host.infinity.cards import drawn_card

    width, depth = sizes
    model = replace(loaded[0], config=replace(loaded[0].config, width=width, depth=depth, token_bits=32))
    card = drawn_card(model, torch.zeros(2, 32, *places), None)
    assert card["lines"] == [f"2 x {places[1] * 16} x {places[0] * 16} pixels"]
    assert [one["id"] for one in card["warnings"]] == ["infinity_small"] * warned


def test_cards_say_what_was_loaded_and_drawn(folders: Path):
    from i2l.nodes.infinity_load import LoadInfinity, LoadInfinityVAE
    from i2l.nodes.infinity_sample import InfinitySampler
    from i2l.nodes.infinity_style import InfinityStyleFromPictures

    model = given(LoadInfinity, model_name="model.safetensors")
    vae = given(LoadInfinityVAE, vae_name="vae.safetensors")
    style = given(InfinityStyleFromPictures, vae=vae[0], image=torch.rand(2, 64, 64, 3), strength=0.5)
    drawn = given(InfinitySampler, model=model[0], positive=words("text", 7), style=style[0], **SMALL)
    assert model.ui.card["lines"] == [
        "Infinity: 4 blocks of width 64, 8 bits a place",
        "0.0 GiB of weights, computed in float32",
    ]
    assert vae.ui.card["lines"] == ["8 bits a place, 16 x 16 pixels"]
    assert drawn.ui.card["lines"] == [
        "336 x 224 pixels",
        "style of 2 pictures after scale 3, strength 0.5, structure kept",
    ]


def test_a_preview_is_shown_after_each_scale_but_the_last(loaded, monkeypatch):
    import comfy.utils

    from i2l.nodes.infinity_sample import InfinitySampler

    model, vae = loaded
    shown = []
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda done, total, preview, **_: shown.append((done / total, preview)),
    )
    given(InfinitySampler, model=model, positive=words("text", 7), preview_vae=vae, **SMALL)
    pictures = [preview[1] for _, preview in shown if preview is not None]
    assert len(pictures) == 6
    assert len({picture.tobytes() for picture in pictures}) == 6
    assert shown[-1][0] == 1


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({}, "style of words after scale 3, strength 1, structure kept"),
        (
            {"structure_end": 0.6, "scale": 2},
            "style of words after scale 2, strength 1, structure kept up to 0.6",
        ),
        ({"structure_end": 0.0}, "style of words after scale 3, strength 1, structure free"),
        (
            {"keep_structure": False, "strength": -2.0},
            "style of words after scale 3, strength -2, structure free",
        ),
    ],
)
def test_the_card_says_how_the_structure_is_kept(host, knobs: dict[str, Any], line: str):
    from i2l.i2l_core.host.infinity.cards import style_line
    from i2l.nodes.infinity_style import InfinityStyleFromWords

    assert style_line(given(InfinityStyleFromWords, conditioning=words("text", 7), **knobs)[0]) == line
