"""Images to LoRA on the real host: the core's own numbers, every input form, progress, cancel, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import ENCODER, save_random_predictor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.query.file import load_predictor
from i2l.i2l_core.references import GRAY, gray, references_from


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_predictor(tmp_path_factory.mktemp("predictor") / "tiny.safetensors")


@pytest.fixture
def predictor(host, path: Path):
    from i2l.i2l_core.host.predictors.runtime import load_predictor

    return load_predictor(path)


def pictures(*sizes: tuple[int, int]) -> dict[str, torch.Tensor]:
    return {f"image{i}": torch.rand(1, *size, 3) for i, size in enumerate(sizes)}


def run(predictor, images):
    from i2l.nodes.predict import ImagesToLoRA

    with torch.inference_mode():
        return ImagesToLoRA.execute(predictor, images)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def close(a, b) -> bool:
    return a.layers.keys() == b.layers.keys() and all(
        torch.allclose(part, other, rtol=1e-4, atol=1e-6)
        for target in a.layers
        for part, other in (
            (a.layers[target].down, b.layers[target].down),
            (a.layers[target].up, b.layers[target].up),
        )
    )


@torch.inference_mode()
def test_lora_and_neutral_equal_the_core_alone(predictor, path: Path):
    images = pictures((64, 64), (40, 100), (200, 33))
    out = run(predictor, images)
    plain = load_predictor(path)
    plain.predictor.float()
    plain.encoder.float()
    references = [reference.pixels for reference in references_from(images)]
    expected = plain.predictor(plain.encoder.encode(references)).lora()
    assert close(out[0].lora, expected)
    neutral = plain.predictor(plain.encoder.encode([gray((64, 64)).pixels] * 3)).lora()
    assert close(out[1].lora, neutral)
    assert not close(out[0].lora, neutral)


def test_outputs_say_what_they_are_for(predictor):
    images = pictures((64, 64), (32, 32))
    out = run(predictor, images)
    lora, neutral = out[0].lora, out[1].lora
    assert (lora.base_model, lora.predictor) == ("i2l-tiny", "tiny")
    assert lora.references == tuple(reference.hash for reference in references_from(images))
    assert neutral.references == (gray((64, 64)).hash,) * 2
    assert float(gray((64, 64)).pixels.unique()) == pytest.approx(GRAY)
    assert all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in out[0].values())
    shown: Any = out.ui
    assert shown.as_dict()["text"] == (f"2 references, rank {lora.rank}, {lora.n_layers} layers",)
    (card,) = shown.as_dict()["i2l_card"]
    assert (card["references"], len(card["thumbnails"])) == (2, 2)
    (entry,) = card["loras"]
    assert (entry["role"], entry["rank"], entry["layers"]) == ("style", lora.rank, lora.n_layers)


def test_batches_single_pictures_and_empty_slots_are_alike(predictor):
    batch = torch.rand(3, 48, 64, 3)
    one = run(predictor, {"image0": batch})
    apart = run(predictor, {"image0": batch[:1], "image1": None, "image2": batch[1:]})
    assert same(one[0], apart[0])
    assert same(one[1], apart[1])


def test_alpha_and_one_channel_are_taken(predictor):
    gray_picture = torch.rand(1, 32, 32, 1)
    assert same(
        run(predictor, {"image0": gray_picture})[0],
        run(predictor, {"image0": gray_picture.expand(-1, -1, -1, 3)})[0],
    )
    see_through = torch.cat([torch.rand(1, 32, 32, 3), torch.zeros(1, 32, 32, 1)], -1)
    assert same(
        run(predictor, {"image0": see_through})[0],
        run(predictor, {"image0": torch.ones(1, 32, 32, 3)})[0],
    )


def test_prediction_is_deterministic_and_the_neutral_one_is_kept(predictor):
    images = pictures((64, 64))
    first, second = run(predictor, images), run(predictor, images)
    assert same(first[0], second[0])
    assert first[1].lora is second[1].lora
    assert (
        first[1]["diffusion_model.layers.0.attention.qkv.lora_up.weight"]
        is not (second[1]["diffusion_model.layers.0.attention.qkv.lora_up.weight"])
    )
    for count in range(2, 7):
        run(predictor, {"image0": torch.rand(count, 16, 16, 3)})
    assert len(predictor.neutrals) == 4
    assert ((1.0, ""),) not in predictor.neutrals


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "expected at least one reference picture, got none; connect an image"),
        ({"image0": None}, "expected at least one reference picture, got none; connect an image"),
        ({"image0": torch.rand(0, 64, 64, 3)}, r"images\.image0: .*got an empty batch"),
        ({"image0": torch.rand(1, 1, 1, 3)}, r"images\.image0: the picture is 1x1; .*at least 8 pixels"),
        (
            {"image0": torch.rand(1, 64, 64, 3), "image1": torch.rand(1, 30, 20000, 3)},
            r"images\.image1: the picture is 20000x30; .*crop it first",
        ),
        ({"image0": torch.full((1, 64, 64, 3), float("nan"))}, r"images\.image0: .*NaN"),
    ],
)
def test_bad_pictures_are_refused_in_one_line(predictor, images, message: str):
    with pytest.raises(I2LError, match=message) as caught:
        run(predictor, images)
    assert "\n" not in str(caught.value)
    assert not predictor.neutrals


def test_a_prediction_that_is_not_finite_is_refused(predictor):
    with torch.no_grad():
        predictor.loaded.predictor.out_norm.weight.fill_(1e38)
        predictor.loaded.predictor.out_norm.bias.fill_(3e38)
    with pytest.raises(I2LError, match=r"the predictor tiny failed on these references: .*NaN or infinite"):
        run(predictor, pictures((32, 32)))
    assert not predictor.neutrals


@torch.inference_mode()
def test_progress_counts_and_cancel_is_honoured_between_pictures(predictor):
    import comfy.model_management as mm

    references = references_from(pictures((32, 32), (32, 32), (32, 32)))
    seen = []
    predictor.predict(references, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]

    predictor.neutrals._loras.clear()
    for stop in range(1, 5):
        seen.clear()

        def cancel(done: int, total: int, stop: int = stop) -> None:
            seen.append(done)
            if done == stop:
                mm.interrupt_current_processing(True)

        with pytest.raises(mm.InterruptProcessingException):
            predictor.predict(references, cancel)
        assert seen[-1] == stop
        assert not predictor.neutrals
    assert predictor.predict(references).lora.n_layers > 0


@torch.inference_mode()
def test_host_moves_both_parts_and_frees_them(predictor):
    import gc

    import comfy.model_management as mm

    run(predictor, pictures((32, 32)))
    loaded = mm.loaded_models()
    assert predictor.network in loaded
    assert predictor.encoder in loaded
    before = {k: v.clone() for k, v in predictor.loaded.predictor.state_dict().items()}
    mm.unload_all_models()
    assert predictor.network not in mm.loaded_models()
    assert all(torch.equal(v, before[k]) for k, v in predictor.loaded.predictor.state_dict().items())
    run(predictor, pictures((32, 32)))
    del predictor, loaded
    gc.collect()


def test_parts_are_stored_and_computed_in_the_types_of_this_device(predictor):
    """A 16 bit file stays small; the encoder, a plain transformers module, is what it computes in."""
    assert predictor.dtype == torch.float32
    assert predictor.loaded.predictor.queries.dtype == torch.bfloat16
    assert {p.dtype for p in predictor.loaded.encoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for m in predictor.get_models() for p in m.model.parameters())


def test_memory_estimates_grow_with_what_they_are_for(host):
    from tiny_world import predictor_config

    from i2l.i2l_core.predictors.memory import encoder_memory, predictor_memory

    small, large = (encoder_memory(ENCODER, side * side, torch.float32) for side in (64, 4096))
    assert 0 < small < large
    few, many = (predictor_memory(predictor_config(), tokens, torch.bfloat16) for tokens in (16, 4096))
    assert 0 < few < many


def test_a_device_with_bfloat16_computes_in_it(host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What happens on such a GPU, run on the CPU: a float32 file is halved, and the LoRA is near the exact one."""
    import comfy.model_management

    from i2l.i2l_core.host.predictors.runtime import load_predictor

    path = save_random_predictor(tmp_path / "wide.safetensors", dtype=torch.float32)
    images = pictures((64, 64), (32, 48))
    exact = run(load_predictor(path), images)[0].lora
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *args, **options: True)
    predictor = load_predictor(path)
    assert predictor.loaded.predictor.queries.dtype == torch.bfloat16
    found = run(predictor, images)[0].lora
    for target, layer in found.layers.items():
        assert layer.up.dtype == torch.bfloat16
        delta = exact.layers[target].delta()
        assert (layer.to(dtype=torch.float32).delta() - delta).norm() < 0.1 * delta.norm()


@torch.inference_mode()
def test_style_references_carry_weights_and_masks(predictor):
    from i2l.nodes.reference import StyleReference

    one, other, mask = torch.rand(1, 64, 64, 3), torch.rand(1, 40, 64, 3), torch.zeros(1, 64, 64)
    mask[:, :32] = 1

    def reference(image, weight=1.0, mask=None):
        return StyleReference.execute(image, weight, mask)[0]

    twice = run(predictor, {"image0": reference(one, 2.0), "image1": other})
    assert close(twice[0].lora, run(predictor, {"image0": torch.cat([one, one]), "image1": other})[0].lora)
    left_out = run(predictor, {"image0": one, "image1": reference(other, 0.0)})
    alone = run(predictor, {"image0": one})
    assert same(left_out[0], alone[0])
    assert same(left_out[1], alone[1])
    masked = run(predictor, {"image0": reference(one, 1.0, mask)})
    assert not close(masked[0].lora, alone[0].lora)
    assert same(run(predictor, {"image0": reference(one, 1.0, torch.ones(1, 8, 8))})[0], alone[0])
    with pytest.raises(I2LError, match="the weights of all references are 0"):
        run(predictor, {"image0": reference(one, 0.0)})
