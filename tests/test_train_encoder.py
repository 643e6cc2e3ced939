"""Vision encoders of trainings: folders as transformers saves them, by the numbers of transformers itself."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import write_world

from i2l.i2l_core.demo import files
from i2l.i2l_core.encoders import NAFLEX, SQUARE
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.query.file import load_predictor
from i2l.i2l_core.train.config import EncoderTable
from i2l.i2l_core.train.encoder import load_encoder, save_encoder

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = VISION | {"vocab_size": 40}


def model_of(name: str, whole: bool):
    """A random SigLIP or SigLIP2 of transformers, or its vision half alone; patches of 16 pixels are left out."""
    import transformers

    kind = {"siglip": "Siglip", "siglip2": "Siglip2"}[name]
    vision = VISION | ({"image_size": 64} if name == "siglip" else {"num_patches": 16})
    if whole:
        config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=TEXT)
        return getattr(transformers, f"{kind}Model")(config).eval()
    config = getattr(transformers, f"{kind}VisionConfig")(**vision)
    return getattr(transformers, f"{kind}VisionModel")(config).eval()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_folders_of_transformers_give_its_tokens(tmp_path, name, whole):
    model = model_of(name, whole)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"resample": 2, "image_mean": [0.4, 0.5, 0.6]})
    )
    encoder = load_encoder(EncoderTable(str(tmp_path)))
    assert encoder.config.kind == {"siglip": SQUARE, "siglip2": NAFLEX}[name]
    assert (encoder.config.resample, encoder.config.mean) == ("bilinear", (0.4, 0.5, 0.6))
    assert not any(p.requires_grad for p in encoder.parameters())
    pictures = torch.randn(2, 3, 64, 64)
    vision = getattr(model, "vision_model", model)
    with torch.no_grad():
        if name == "siglip":
            expected = vision(pictures).last_hidden_state
        else:
            patches = pictures.unflatten(3, (4, 16)).unflatten(2, (4, 16)).permute(0, 2, 4, 3, 5, 1)
            mask = torch.ones(2, 16, dtype=torch.long)
            expected = vision(
                patches.flatten(3).flatten(1, 2), mask, torch.tensor([[4, 4]] * 2)
            ).last_hidden_state
        torch.testing.assert_close(encoder(pictures), expected, atol=1e-5, rtol=1e-5)


def test_an_encoder_that_was_saved_is_the_one_that_is_loaded(tmp_path):
    encoder = load_predictor(write_world(tmp_path) / files.PREDICTOR).encoder.float()
    save_encoder(tmp_path / "encoder", encoder)
    found = load_encoder(EncoderTable(str(tmp_path / "encoder")))
    for name in ("kind", "image_size", "mean", "std", "resample"):
        assert getattr(found.config, name) == getattr(encoder.config, name)
    pictures = [torch.rand(50, 70, 3)]
    with torch.no_grad():
        assert torch.equal(found.encode(pictures), encoder.encode(pictures))


def test_more_patches_are_for_naflex(tmp_path):
    model_of("siglip2", False).save_pretrained(tmp_path)
    encoder = load_encoder(EncoderTable(str(tmp_path), max_patches=64))
    with torch.no_grad():
        assert encoder.encode([torch.rand(128, 128, 3)]).shape == (1, 64, 32)
    write_world(tmp_path)
    with pytest.raises(I2LError, match="max_patches is for NaFlex encoders; leave it out"):
        load_encoder(EncoderTable(str(tmp_path / files.PREDICTOR), max_patches=64))


def test_folders_that_are_no_encoders_are_named(tmp_path):
    model_of("siglip", False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    table = EncoderTable(str(tmp_path))
    for change, message in (
        ({"model_type": "clip"}, r"config\.json is of a 'clip'; expected siglip, siglip2"),
        ({"num_hidden_layers": 3}, r"do not fit its config\.json: missing encoder\.layers\.2"),
        ({"hidden_size": 64}, r"of another shape embeddings"),
        ({"hidden_size": "32"}, r"hidden_size must be a whole number"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(I2LError, match=message):
            load_encoder(table)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(I2LError, match=r"expected config\.json and model\.safetensors in"):
        load_encoder(table)
    with pytest.raises(I2LError, match="expected a predictor file"):
        load_encoder(EncoderTable(str(tmp_path / "model.safetensors")))


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "model_type", ["siglip"], r"is of a \['siglip'\]; expected siglip"),
        ("config.json", "vision_config", "[" * 50_000, "expected config.json and model.safetensors"),
        ("preprocessor_config.json", "resample", 1, "has the resample 1, expected 2, bilinear, or 3, bicubic"),
        ("preprocessor_config.json", "resample", [2], "has the resample list, expected 2"),
        ("model.safetensors", "post_layernorm.bias", math.nan, "post_layernorm.bias holds NaN"),
        ("model.safetensors", "post_layernorm.bias", torch.int32, "is torch.int32, expected floats of 32 or 16 bits"),
        ("model.safetensors", "vision_model.post_layernorm.bias", 1.0, "have post_layernorm.bias under two names"),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused_in_one_line(tmp_path, file, key, value, message):
    model = model_of("siglip", whole=False)
    model.save_pretrained(tmp_path)
    path = tmp_path / file
    if file.endswith(".json"):
        about = json.loads(path.read_text()) if path.exists() else {}
        text = json.dumps({**about, key: value})
        path.write_text(text.replace(f'"{value}"', value) if "[[" in str(value) else text)
    else:
        tensors = {name.removeprefix("vision_model."): t for name, t in load_file(path).items()}
        old = tensors["post_layernorm.bias"]
        tensors[key] = torch.full_like(old, value) if isinstance(value, float) else old.to(value)
        save_file(tensors, path)
    with pytest.raises(I2LError, match=message) as caught:
        load_encoder(EncoderTable(str(tmp_path)))
    assert str(caught.value).isprintable()
