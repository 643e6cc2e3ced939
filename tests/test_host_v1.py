"""Version 1 on the real host: the core's own numbers, who is loaded when, and which pictures are looked at."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import TINY as PUBLISHED_LIKE
from tiny_encoders import WIDTH, save_encoder
from tiny_v1 import qwen, random_predictor, save, tiny_z_image, z_image

from i2l.i2l_core.base_models import MODELS
from i2l.i2l_core.encoders import DINOV3, SIGLIP2, PooledEncoder, load_pooled
from i2l.i2l_core.encoders.casting import FLOAT8
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA
from i2l.i2l_core.predictors.v1 import kinds as v1_kinds
from i2l.i2l_core.predictors.v1.kinds import COARSE, QWEN, Z_IMAGE, Residual, V1Config
from i2l.i2l_core.predictors.v1.network import LoadedV1
from i2l.i2l_core.references import GRAY, Reference, gray

# smaller pictures than the published ones, so that tests are quick
TINY = {
    SIGLIP2: replace(PUBLISHED_LIKE[SIGLIP2], side=64),
    DINOV3: replace(PUBLISHED_LIKE[DINOV3], patch=32),
}
FILES = {SIGLIP2: "SigLIP2-G384/model.safetensors", DINOV3: "DINOv3-7B/model.safetensors"}


@pytest.fixture
def folder(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder for vision encoders, with both in bfloat16, as published."""
    import folder_paths

    folder = tmp_path / "clip_vision"
    _, extensions = folder_paths.folder_names_and_paths["clip_vision"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(folder)], extensions))
    for kind, name in FILES.items():
        save_encoder(folder / name, TINY[kind], torch.bfloat16)
    return folder


@pytest.fixture
def loaded() -> LoadedV1:
    config = V1Config(Z_IMAGE, z_image(layers=3, dim=12, mlp=20), token_dim=WIDTH, code=3)
    return LoadedV1(config, random_predictor(config).eval(), "tiny")


@pytest.fixture
def predictor(folder: Path, loaded: LoadedV1) -> Any:
    from i2l.i2l_core.host.predictors.runtime import ComfyRuntime
    from i2l.i2l_core.predictors.v1.predictor import V1Predictor

    return V1Predictor(loaded, ComfyRuntime())


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many pictures went through each kind of encoder."""
    count = dict.fromkeys(FILES, 0)
    forward = PooledEncoder.forward

    def counting(self: PooledEncoder, pixels: torch.Tensor) -> torch.Tensor:
        count[self.config.kind] += len(pixels)
        return forward(self, pixels)

    monkeypatch.setattr(PooledEncoder, "forward", counting)
    return count


@pytest.fixture
def loads(host: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The encoders that are loaded, after each time that something was."""
    import comfy.model_management as mm

    seen: list[list[str]] = []
    load = mm.load_models_gpu

    def watching(*args: Any, **kwargs: Any) -> None:
        load(*args, **kwargs)
        seen.append(encoders_loaded())

    monkeypatch.setattr(mm, "load_models_gpu", watching)
    return seen


def encoders_loaded() -> list[str]:
    import comfy.model_management as mm

    modules: list[Any] = [patcher.model for patcher in mm.loaded_models()]
    return [module.config.kind for module in modules if isinstance(module, PooledEncoder)]


def references(*sizes: tuple[int, int]) -> list[Reference]:
    return [Reference(torch.rand(height, width, 3)) for height, width in sizes]


def some() -> list[Reference]:
    return references((40, 60), (64, 64), (90, 33))


def run(predictor: Any, pictures: list[Reference], **kwargs: Any) -> Any:
    with torch.inference_mode():
        return predictor.predict(pictures, **kwargs)


def close(found: LoRA, expected: LoRA, limit: float = 1e-5) -> bool:
    assert found.layers.keys() == expected.layers.keys()
    pairs = [(found.layers[target].delta(), expected.layers[target].delta()) for target in found.layers]
    return all((a - b).norm() <= limit * b.norm() for a, b in pairs)


def core_alone(folder: Path, loaded: LoadedV1, pictures: list[Reference]) -> LoRA:
    encoders = [load_pooled(folder / name) for name in FILES.values()]
    with torch.no_grad():
        x = torch.cat([encoder.encode([one.pixels for one in pictures]) for encoder in encoders], dim=1)
        return loaded.predictor(x, [one.weight for one in pictures])


def test_lora_and_neutral_equal_the_core_alone(predictor: Any, folder: Path, loaded: LoadedV1):
    pictures = some()
    found = run(predictor, pictures)
    assert close(found.lora, core_alone(folder, loaded, pictures))
    assert found.lora.rank == 3 * loaded.config.rank
    assert close(found.neutral, core_alone(folder, loaded, [gray((1024, 1024))] * 3))  # of any size
    assert not close(found.neutral, found.lora, 0.1)


def test_outputs_say_what_they_are_for(predictor: Any):
    pictures = some()
    found = run(predictor, pictures)
    assert (found.lora.base_model, found.lora.predictor) == ("other-z", "tiny")
    assert found.lora.references == tuple(picture.hash for picture in pictures)
    assert found.neutral.references == (gray((8, 8)).hash,)
    assert found.neutral.rank == 4
    layer = next(iter(found.lora.layers.values()))
    assert (layer.up.device.type, layer.up.dtype) == ("cpu", torch.float32)


def test_weights_count_as_the_picture_given_so_often(predictor: Any):
    one, other, third = some()
    weighted = run(predictor, [replace(one, weight=2.0), other, replace(third, weight=0.0)])
    assert close(weighted.lora, run(predictor, [one, one, other]).lora)
    assert weighted.lora.references == (one.hash, other.hash)
    with pytest.raises(I2LError, match="the weights of all references are 0"):
        run(predictor, [replace(one, weight=0.0)])


def test_a_mask_fills_with_the_mean_colour_of_what_it_shows(predictor: Any, looks: dict[str, int]):
    picture = some()[0]
    mask = torch.zeros(picture.size)
    mask[:, :20] = 1
    masked = run(predictor, [replace(picture, mask=mask)]).lora
    assert looks == dict.fromkeys(FILES, 2)  # it and gray
    assert close(masked, run(predictor, [replace(picture, mask=mask).mask_filled()]).lora)
    assert not close(masked, run(predictor, [picture]).lora, 0.01)
    assert close(
        run(predictor, [replace(picture, mask=torch.ones(picture.size))]).lora, run(predictor, [picture]).lora
    )


def test_only_new_pictures_are_looked_at(
    predictor: Any, folder: Path, looks: dict[str, int], loaded: LoadedV1
):
    from i2l.i2l_core.predictors.v1.predictor import V1Predictor

    def new(pictures: list[Reference], by: Any = predictor) -> int:
        before = dict(looks)
        run(by, pictures)
        added = {looks[kind] - before[kind] for kind in looks}
        assert len(added) == 1
        return added.pop()

    eight = references(*[(20 + i, 30) for i in range(8)])
    assert new(eight) == 9  # and gray
    assert new(eight) == 0
    changed = [*eight[:3], references((25, 40))[0], *eight[4:]]
    assert new(changed) == 1
    assert new(list(reversed(changed))) == 0
    assert new([replace(eight[0], weight=3.0), eight[1]]) == 0
    assert new(references((9, 9)) * 4) == 1
    again = V1Predictor(loaded, predictor.runtime)  # the file loaded once more
    assert new(eight, again) == 0
    assert close(run(again, changed).lora, run(predictor, changed).lora, 0)
    for name in FILES.values():  # other encoders, other embeddings
        os.utime(folder / name, ns=(1, 1))
    assert new(eight) == 9


def test_the_cache_is_bounded_and_the_oldest_goes_first():
    from i2l.i2l_core.encoders.embeddings import Embeddings

    kept = Embeddings(limit=3 * 40)
    for i in range(3):
        kept.keep(("encoder", str(i)), torch.full((10,), float(i)))
    assert kept.get(("encoder", "0")) is not None
    kept.keep(("encoder", "3"), torch.zeros(10))
    assert [kept.get(("encoder", str(i))) is not None for i in range(4)] == [True, False, True, True]
    kept.keep(("encoder", "3"), torch.zeros(5))
    kept.keep(("encoder", "4"), torch.zeros(5))
    assert len(kept) == 4
    kept.keep(("encoder", "huge"), torch.zeros(1000))
    assert len(kept) == 0


def test_a_prediction_larger_than_the_cache_is_right(predictor: Any, folder: Path, loaded: LoadedV1):
    from i2l.i2l_core.encoders.embeddings import Embeddings

    pictures = some()
    predictor.runtime.embeddings = Embeddings(limit=400)
    assert close(run(predictor, pictures).lora, core_alone(folder, loaded, pictures))


def test_one_encoder_at_a_time_is_loaded_and_none_is_left(predictor: Any, loads: list[list[str]]):
    import comfy.model_management as mm
    from tiny_models import build

    users = build("lumina2")
    mm.load_models_gpu([users])
    loads.clear()
    run(predictor, some())
    assert loads == [[SIGLIP2], [DINOV3]]
    assert encoders_loaded() == []
    assert users in mm.loaded_models()  # what the user works with stays
    assert [patcher.model.config.kind for patcher in predictor.get_models()] == [SIGLIP2, DINOV3]
    loads.clear()
    run(predictor, some())  # other pictures: the same encoders, not read again
    assert loads == [[SIGLIP2], [DINOV3]]
    loads.clear()
    mm.unload_all_models()
    assert run(predictor, some()).lora.rank == 12


def test_nothing_is_loaded_when_all_pictures_are_known(predictor: Any, loads: list[list[str]]):
    pictures = some()
    run(predictor, pictures)
    loads.clear()
    run(predictor, pictures)
    assert loads == []


def test_encoders_stay_in_memory_only_where_there_is_plenty(
    predictor: Any, folder: Path, loaded: LoadedV1, monkeypatch: pytest.MonkeyPatch
):
    import comfy.model_management as mm

    little = lambda device=None, torch_free_too=False: (1000, 1000) if torch_free_too else 1000  # noqa: E731
    monkeypatch.setattr(mm, "get_free_memory", little)
    pictures = some()
    assert close(run(predictor, pictures).lora, core_alone(folder, loaded, pictures))
    assert predictor.get_models() == []
    assert encoders_loaded() == []
    others = some()
    assert close(run(predictor, others).lora, core_alone(folder, loaded, others))


def test_progress_counts_and_cancel_keeps_what_was_seen(predictor: Any, looks: dict[str, int]):
    import comfy.model_management as mm

    pictures, seen = some(), []
    run(predictor, pictures, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]  # two encoders, three pictures and gray; two LoRAs
    seen.clear()
    run(predictor, pictures, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]

    others = some()

    def cancel(done: int, total: int) -> None:
        if done == 2:
            mm.interrupt_current_processing(True)

    looks.update(dict.fromkeys(looks, 0))
    with pytest.raises(mm.InterruptProcessingException):
        run(predictor, others, progress=cancel)
    assert looks == {SIGLIP2: 2, DINOV3: 0}
    assert encoders_loaded() == []
    run(predictor, others)
    assert looks == dict.fromkeys(FILES, 3)


def test_dinov3_is_kept_in_eight_bits_where_the_user_says_so(predictor: Any):
    from i2l.i2l_core.host.predictors.runtime import ComfyRuntime

    pictures = some()
    exact = run(predictor, pictures).lora
    small = replace(predictor, float8=True, encoders={}, runtime=ComfyRuntime())
    found = run(small, pictures).lora
    assert not close(found, exact, 1e-4)
    assert close(found, exact, 0.3)
    sizes = {}
    for way in (predictor, small):
        models = {patcher.model.config.kind: patcher for patcher in way.get_models()}
        assert FLOAT8 not in {parameter.dtype for parameter in models[SIGLIP2].model.parameters()}
        sizes[way] = models[DINOV3].model_size()
    assert sizes[predictor] - sizes[small] > 0.95 * TINY[DINOV3].weights  # a byte for each, less the scales


@pytest.mark.parametrize(("gigabytes", "small"), [(8, True), (12, True), (16.5, False), (80, False)])
def test_a_small_card_keeps_the_published_dinov3_in_eight_bits(
    host: Any, gigabytes: float, small: bool, monkeypatch: pytest.MonkeyPatch
):
    import comfy.model_management as mm

    from i2l.i2l_core.encoders import PooledConfig
    from i2l.i2l_core.encoders.files import EncoderFile
    from i2l.i2l_core.encoders.picture_encoders import file_encoder
    from i2l.i2l_core.host.predictors.runtime import ComfyRuntime

    monkeypatch.setattr(mm, "get_torch_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(mm, "get_total_memory", lambda *args: int(gigabytes * 1e9))
    monkeypatch.setattr(mm, "should_use_bf16", lambda *args: True)
    published = PooledConfig(DINOV3, width=4096, blocks=40, mlp=8192, patch=16, side=224, registers=4)
    file = EncoderFile(Path("model.safetensors"), published, "id")
    assert published.weights == pytest.approx(6.72e9, rel=0.01)
    published_as = (file, ComfyRuntime(), torch.bfloat16)
    assert (file_encoder(*published_as).stored == FLOAT8) is small
    assert file_encoder(*published_as, float8=not small).stored == (torch.bfloat16 if small else FLOAT8)
    assert file_encoder(*published_as).dtype == torch.bfloat16


def test_a_device_with_bfloat16_computes_in_it(predictor: Any, monkeypatch: pytest.MonkeyPatch):
    """What happens on such a GPU, run on the CPU."""
    import comfy.model_management as mm

    pictures = some()
    exact = run(predictor, pictures).lora
    monkeypatch.setattr(mm, "should_use_bf16", lambda *args, **kwargs: True)
    found = run(replace(predictor, encoders={}), pictures).lora
    assert next(iter(found.layers.values())).up.dtype == torch.bfloat16
    assert close(found.to(dtype=torch.float32), exact, 0.1)
    assert not close(found.to(dtype=torch.float32), exact, 1e-5)


@pytest.mark.parametrize("kinds", [(SIGLIP2,), (DINOV3,), (SIGLIP2, DINOV3)])
def test_missing_encoders_are_named_with_where_to_get_them(
    predictor: Any, folder: Path, loaded: LoadedV1, kinds: tuple[str, ...]
):
    wide = replace(loaded, config=replace(loaded.config, token_dim=1536 + 4096))
    for kind in FILES:
        (folder / FILES[kind]).unlink()
        if kind not in kinds:  # a header of the published size, which nobody reads further
            _save_header_only(folder / FILES[kind], kind)
    with pytest.raises(I2LError, match="needs image encoders that are missing") as caught:
        run(replace(predictor, loaded=wide), some())
    message = str(caught.value)
    assert "\n" not in message
    for kind, name in FILES.items():
        url = "https://modelscope.cn/models/DiffSynth-Studio/General-Image-Encoders"
        advice = f"{kind}: get {name} of {url} into models/clip_vision/{Path(name).parent}"
        assert (advice in message) is (kind in kinds)
    about = replace(predictor, loaded=wide).describe()
    assert all((f"{kind} in {folder}" in about) is (kind not in kinds) for kind in FILES)


def _save_header_only(path: Path, kind: str) -> None:
    """The tensors that tell sizes, of the published ones, sparse on disk."""
    import json

    from i2l.i2l_core.encoders import KINDS

    about = KINDS[kind]
    shapes = {
        about.mark: [1, 4, about.width],
        about.patches: [about.width, 3, 16, 16],
        f"{about.block}0.{about.mlp}": [8192, about.width],
        "embeddings.position_embedding.weight": [576, about.width],
    }
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_encoders_of_another_size_are_named(predictor: Any, folder: Path):
    save_encoder(folder / FILES[DINOV3], replace(TINY[DINOV3], width=256), torch.bfloat16)
    with pytest.raises(I2LError, match=r"missing \(of another size: .*DINOv3 \(width 256, 2 blocks\)"):
        run(predictor, some())
    assert encoders_loaded() == []


def test_encoders_are_found_by_content_in_either_folder(predictor: Any, folder: Path):
    import folder_paths

    from i2l.i2l_core.encoders.files import pair_of_width
    from i2l.i2l_core.host.folders import PREDICTORS
    from i2l.i2l_core.host.predictors.encoder_files import encoder_files

    elsewhere = Path(folder_paths.get_folder_paths(PREDICTORS)[0]) / "any name.safetensors"
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.ones(1)}, folder / "other.safetensors")
    (folder / "page.safetensors").write_text("<html>")
    (folder / FILES[DINOV3]).replace(elsewhere)
    try:
        assert {kind: file.path for kind, file in pair_of_width(WIDTH, encoder_files()).files.items()} == {
            SIGLIP2: folder / FILES[SIGLIP2],
            DINOV3: elsewhere,
        }
        assert run(predictor, some()).lora.rank == 12
    finally:
        elsewhere.unlink()


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_encoder_is_named_and_nothing_is_left_loaded(predictor: Any, folder: Path, kind: str):
    path = folder / FILES[kind]
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, path)
    with pytest.raises(I2LError, match=rf"model\.safetensors: {re.escape(name)} holds NaN"):
        run(predictor, some())
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(I2LError, match=rf"{re.escape(name)} is missing"):
        run(predictor, some())
    assert encoders_loaded() == []
    assert not predictor.neutrals


def test_what_is_not_finite_is_refused(predictor: Any, folder: Path, loaded: LoadedV1):
    tensors = load_file(folder / FILES[DINOV3])
    save_file(
        {**tensors, "norm.weight": torch.full_like(tensors["norm.weight"], 3e38)}, folder / FILES[DINOV3]
    )
    with pytest.raises(I2LError, match=r"^model\.safetensors gave NaN or infinite values for a reference"):
        run(predictor, some())
    assert encoders_loaded() == []
    save_file(tensors, folder / FILES[DINOV3])
    loaded.predictor.compress.fill_(3e38)
    with pytest.raises(I2LError, match=r"^the predictor tiny failed on these references: .*NaN or infinite"):
        run(predictor, some())
    assert not predictor.neutrals


def test_a_file_of_version_1_is_opened_as_what_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from i2l.i2l_core.host.predictors.runtime import load_predictor
    from i2l.i2l_core.predictors.v1.predictor import V1Predictor

    config = replace(tiny_z_image(), token_dim=WIDTH)
    monkeypatch.setattr(v1_kinds, "MODELS", (*MODELS, config.base_model))
    path = save(random_predictor(config), tmp_path / "Z-Image-i2L.safetensors")
    first, second = (load_predictor(path) for _ in range(2))
    assert isinstance(first, V1Predictor)
    assert isinstance(second, V1Predictor)
    assert first.name == "Z-Image-i2L"
    assert first.runtime.embeddings is second.runtime.embeddings
    about = first.describe()
    assert about.startswith("i2L version 1, ")
    assert "rank 4 per picture" in about
    assert f"encoders: SigLIP2 in {folder}" in about
    assert first.with_clip(object()).predict(some()).lora.rank == 12  # it has no use for one
    assert float(gray((8, 8)).pixels[0, 0, 0]) == pytest.approx(GRAY)


@pytest.fixture(scope="module")
def clip(host: Any) -> Any:
    from tiny_qwen import tiny_clip

    return tiny_clip()


@pytest.fixture
def coarse(folder: Path) -> Any:
    from tiny_qwen import WIDTH as STATE

    from i2l.i2l_core.host.predictors.runtime import ComfyRuntime
    from i2l.i2l_core.predictors.v1.predictor import V1Predictor

    residual = Residual(COARSE, STATE, code=2)
    config = V1Config(QWEN, qwen(layers=2, hidden=8), token_dim=WIDTH, code=3, residual=residual)
    return V1Predictor(LoadedV1(config, random_predictor(config).eval(), "coarse"), ComfyRuntime())


def test_the_clip_of_qwen_image_is_looked_through_as_well(
    coarse: Any, clip: Any, folder: Path, loads: list[list[str]]
):
    import comfy.model_management as mm

    from i2l.i2l_core.host.predictors.qwen_states import QwenStates

    pictures = [replace(some()[0], weight=2.0), some()[1]]
    seen: list[tuple[int, int]] = []
    found = run(coarse.with_clip(clip), pictures, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 * 3 + 2, 3 * 3 + 2)
    assert loads == [[SIGLIP2], [DINOV3], [], [], []]
    assert clip.patcher in mm.loaded_models()  # it is the user's: the host decides

    states = QwenStates(clip, coarse.loaded.config.residual, torch.float32)
    encoders = [load_pooled(folder / name) for name in FILES.values()]
    with torch.no_grad(), states.ready() as look:
        x = torch.cat([encoder.encode([one.pixels for one in pictures]) for encoder in encoders], dim=1)
        residuals = torch.stack([look(one) for one in pictures])
        expected = coarse.loaded.predictor(x, [2.0, 1.0], residuals)
    assert close(found.lora, expected)

    seen.clear()
    run(coarse.with_clip(clip.clone()), pictures, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)  # the same weights see the same
    changed = clip.clone()
    changed.patcher.patches_uuid = "other"
    run(coarse.with_clip(changed), pictures, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 + 2, 3 + 2)


def test_what_is_not_the_clip_of_qwen_image_is_refused(coarse: Any, clip: Any, loads: list[list[str]]):
    with pytest.raises(
        I2LError, match=r"also needs the text encoder of Qwen-Image, which runs only in ComfyUI: connect"
    ):
        run(coarse, some())
    assert loads == []
    with pytest.raises(I2LError, match=r"^clip: expected the CLIP of Qwen-Image, got one with NoneType"):
        run(coarse.with_clip(SimpleNamespace(patcher=clip.patcher, layer_idx=None, tokenizer=None)), some())
    config = coarse.loaded.config
    wide = replace(config, residual=Residual(COARSE, 3584, code=2))
    loaded = LoadedV1(wide, random_predictor(wide).eval(), "wide")
    with pytest.raises(
        I2LError, match=r"^clip: expected hidden states \(71, 3584\) of a picture, got \(71, 128\)"
    ):
        run(replace(coarse, loaded=loaded).with_clip(clip), some())
    odd = replace(config, residual=Residual(72, 128, code=2))
    loaded = LoadedV1(odd, random_predictor(odd).eval(), "odd")
    with pytest.raises(I2LError, match="this predictor reads 72 hidden states per picture"):
        run(replace(coarse, loaded=loaded).with_clip(clip), some())
    assert encoders_loaded() == []


def test_the_published_sizes_ask_for_no_more_than_the_largest_encoder_and_a_fifth(host: Any):
    from tiny_v1 import PUBLISHED

    from i2l.i2l_core.encoders import PooledConfig
    from i2l.i2l_core.encoders.picture_encoders import pooled_memory
    from i2l.i2l_core.predictors.memory import v1_memory

    largest = PooledConfig(DINOV3, width=4096, blocks=40, mlp=8192, patch=16, side=224, registers=4)
    other = PooledConfig(SIGLIP2, width=1536, blocks=40, mlp=6144, patch=16, side=384)
    bf16 = torch.bfloat16
    limit = 1.2 * largest.weights * bf16.itemsize
    for encoder in (largest, other):
        assert encoder.weights * bf16.itemsize + pooled_memory(encoder, bf16) < limit
    for config, _ in PUBLISHED.values():  # its weights never are on the GPU as a whole
        assert v1_memory(config, 64, bf16) < limit
