"""Training through the host's own models: true gradients, rows of their own LoRAs, frozen weights, a useful result."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import build, close
from tiny_training import picture, rows, tables, train_here, write_config, write_folder, write_world

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target

SHAPES = {"flux2": (128, 4, 4), "lumina2": (16, 8, 8), "hidream_o1": (3, 64, 64)}
WIDTHS = {"flux2": 48, "lumina2": 32}
RUN = {  # layers that a forward without reference pictures runs
    "flux2": lambda name: True,
    "lumina2": lambda name: True,
    "hidream_o1": lambda name: not name.startswith("visual."),
}
by_model = pytest.mark.parametrize("name", SHAPES)


def text(name: str, words: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """One prompt as the host's text encoder gives it."""
    generator = torch.Generator().manual_seed(100 * seed + words)
    if name == "hidream_o1":
        ids = torch.randint(0, 1000, (words,), generator=generator).tolist()
        return {"cond": torch.zeros(1, 1, 1), "text_input_ids": torch.tensor([[*ids, 151669, 151673]])}
    return {"cond": torch.randn(1, words, WIDTHS[name], generator=generator)}


def base_of(name: str, checkpointing: bool = False, split_fused: bool = True):
    from i2l.i2l_core.host.train.base import HostBase

    model = build(name).model
    id = "" if name == "lumina2" else f"tiny-{name}"
    return HostBase(model, torch.device("cpu"), id, checkpointing, split_fused)


def loras(base, name: str, groups: int, rank: int = 2, size: float = 0.05):
    """Leaves of LoRAs for every layer that runs, and the layers as a predictor gives them."""
    generator = torch.Generator().manual_seed(5)
    pairs = {}
    for layer in base.layers:
        if RUN[name](layer.weight):
            down = torch.randn(groups, rank, layer.d_in, generator=generator) / layer.d_in**0.5
            up = torch.randn(groups, layer.d_out, rank, generator=generator) * size
            pairs[layer.target] = down.requires_grad_(), up.requires_grad_()
    return pairs


def leaves(pairs):
    return [tensor for pair in pairs.values() for tensor in pair]


def inputs(name: str, rows: int):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(rows, *SHAPES[name], generator=generator), torch.linspace(0.2, 0.9, rows)


@pytest.fixture(autouse=True)
def _training(host):
    from i2l.i2l_core.host.train.base import training

    with training():
        yield


@by_model
def test_velocity_is_that_of_the_host_with_the_loras_merged(name):
    import comfy.model_management

    from i2l.i2l_core.host.patch import apply_merged

    base = base_of(name)
    x, sigma = inputs(name, 2)
    pairs = loras(base, name, groups=2)
    texts = [text(name), text(name, seed=1)]
    with torch.no_grad():
        found = base.velocity(x, sigma, texts, pairs)
    comfy.model_management.in_training = False
    for row in range(2):
        lora = LoRA({t: LowRank(d[row].detach(), u[row].detach()) for t, (d, u) in pairs.items()})
        merged = apply_merged(build(name), lora, 1.0)
        merged.patch_model()
        conds = base._conds(texts[row], x[row : row + 1])
        with torch.no_grad():
            clean = merged.model.apply_model(
                x[row : row + 1],
                sigma[row : row + 1],
                **{key: cond.cond for key, cond in conds.items()},
                transformer_options={},
            )
        close(found[row : row + 1], (x[row : row + 1] - clean) / sigma[row], 2e-4)


@by_model
def test_gradients_are_those_of_finite_differences_and_checkpointing_keeps_them(name):
    gradients, x_sigma = [], inputs(name, 2)
    texts = [text(name), text(name, seed=1)]
    for checkpointing in (False, True):
        base = base_of(name, checkpointing)
        pairs = loras(base, name, groups=2)
        base.velocity(*x_sigma, texts, pairs).square().mean().backward()
        gradients.append([tensor.grad for tensor in leaves(pairs)])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        close(other, one, 2e-5)

    base, pairs = base_of(name), loras(base, name, groups=2)
    generator = torch.Generator().manual_seed(3)
    along = [torch.randn(t.shape, generator=generator) * t.detach().std() for t in leaves(pairs)]
    expected = sum(float((g * d).sum()) for g, d in zip(gradients[0], along, strict=True))
    ends, step = [], 0.05
    for sign in (1, -1):
        with torch.no_grad():
            moved = {
                target: tuple(t + sign * step * along[2 * i + j] for j, t in enumerate(pair))
                for i, (target, pair) in enumerate(pairs.items())
            }
            ends.append(float(base.velocity(*x_sigma, texts, moved).double().square().mean()))
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=0.02)


def test_blocks_that_write_into_a_given_tensor_have_the_same_gradients(host, monkeypatch: pytest.MonkeyPatch):
    """ComfyUI 0.33 adds with `out=` in the blocks of HiDream-O1, which autograd refuses."""
    from comfy.text_encoders.llama import TransformerBlock

    forward, gradients = TransformerBlock.forward, []

    def newer(self, x, *args, **kwargs):
        y, *rest = forward(self, x, *args, **kwargs)
        return torch.add(y, torch.zeros_like(y), out=y), *rest

    for block in (forward, newer):
        monkeypatch.setattr(TransformerBlock, "forward", block)
        for checkpointing in (False, True):
            base = base_of("hidream_o1", checkpointing)
            pairs = loras(base, "hidream_o1", groups=1)
            base.velocity(*inputs("hidream_o1", 1), [text("hidream_o1")], pairs).square().mean().backward()
            gradients.append([tensor.grad for tensor in leaves(pairs)])
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            close(other, one, 2e-5)


@by_model
def test_rows_do_not_know_of_each_other_though_their_prompts_differ_in_length(name):
    base = base_of(name)
    x, sigma = inputs(name, 4)
    texts = [text(name, words, seed) for seed, words in enumerate((5, 9, 5, 40))]
    pairs = loras(base, name, groups=2)
    with torch.no_grad():
        together = base.velocity(x, sigma, texts, pairs)
        for row in range(4):
            own = {t: (d[row // 2, None], u[row // 2, None]) for t, (d, u) in pairs.items()}
            alone = base.velocity(x[row, None], sigma[row, None], [texts[row]], own)
            close(together[row, None], alone, 1e-4)


@pytest.mark.parametrize("name", ["flux2", "lumina2"])
def test_fused_layers_split_or_whole_are_the_same_weights(name):
    split, fused = base_of(name, split_fused=True), base_of(name, split_fused=False)
    assert {layer.weight for layer in split.layers} == {layer.weight for layer in fused.layers}
    assert all(layer.rows is None for layer in fused.layers)
    assert any(layer.rows for layer in split.layers)
    rows_of = {}
    for layer in split.layers:
        rows_of[layer.weight] = rows_of.get(layer.weight, 0) + layer.d_out
    assert rows_of == {layer.weight: layer.d_out for layer in fused.layers}


@by_model
def test_noise_levels_are_the_models_own(name):
    base = base_of(name)
    u = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    shift = {"flux2": 2.718281828**2.02, "lumina2": 3.0, "hidream_o1": 3.0}[name]
    expected = shift * u / (1 + (shift - 1) * u)
    torch.testing.assert_close(base.sigmas(u)[1:], expected[1:], atol=1e-4, rtol=0)
    assert 0 < base.sigmas(u)[0] < 0.02
    assert base.noise_scale == (8.0 if name == "hidream_o1" else 1.0)


def test_the_switch_of_the_host_is_put_back():
    import comfy.model_management

    from i2l.i2l_core.host.train.base import training

    comfy.model_management.in_training = False
    with training():
        assert comfy.model_management.in_training
    assert not comfy.model_management.in_training

    def fail():
        with training():
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not comfy.model_management.in_training


def test_unknown_models_need_an_id_and_known_ones_keep_theirs():
    from i2l.i2l_core.host.train.base import HostBase

    device = torch.device("cpu")
    with pytest.raises(I2LError, match=r"are of no model in the list.*give it an id in \[base\]"):
        HostBase(build("flux2").model, device, "", False, False)
    with pytest.raises(I2LError, match=r"id is 'z-image', but the model is 'i2l-tiny'; leave the id out"):
        HostBase(build("lumina2").model, device, "z-image", False, False)


@pytest.fixture(scope="module")
def flux2_data(tmp_path_factory):
    """A data set that brings latents and embeddings, and the file of a tiny FLUX.2: no VAE, no text encoder."""
    folder = tmp_path_factory.mktemp("flux2")
    path = write_folder(folder / "set")
    kept, generator = [], torch.Generator().manual_seed(0)
    for number, row in enumerate(rows()):
        style = torch.randn(128, 1, 1, generator=torch.Generator().manual_seed(int(row["style"][-1])))
        latent = style + 0.1 * torch.randn(128, 4, 4, generator=generator)
        save_file({"latent": latent}, path.parent / f"{number}.latent.safetensors")
        save_file(text("flux2", seed=number % 4), path.parent / f"{number}.text.safetensors")
        names = {kind: f"{number}.{kind}.safetensors" for kind in ("latent", "text")}
        kept.append(json.dumps(row | names))
    path.write_text("\n".join(kept))
    save_file(dict(build("flux2").model.diffusion_model.state_dict()), folder / "flux2.safetensors")
    write_world(folder)
    return folder


def flux2_tables(folder, run, **changes):
    config = tables(folder, folder / "set" / "rows.jsonl", run, **changes)
    config["base"] = {
        "kind": "host", "model": str(folder / "flux2.safetensors"), "id": "tiny-flux2", "dtype": "float32"
    }  # fmt: skip
    config["predictor"] |= {"layers": ["double_blocks.*", "single_blocks.*"]}
    config["pairing"] |= {"targets": 1, "empty_prompts": 0.0, "gray": 0.0}
    config["plan"] |= {"steps": 12, "batch": 2, "save_every": 12, "lr": 0.03}
    config["run"] |= {"micro_batch": 2, "measure_every": 12}
    return config


def test_a_predictor_for_a_model_of_the_host_learns_and_predicts(flux2_data, tmp_path):
    import csv

    from i2l.i2l_core.commands import train
    from i2l.i2l_core.predictors.query.file import load_predictor

    before = (flux2_data / "flux2.safetensors").read_bytes()
    config = write_config(tmp_path / "config.json", flux2_tables(flux2_data, tmp_path / "run"))
    assert train.main([str(config)]) == 0
    with (tmp_path / "run" / "log.csv").open() as file:
        figures = [json.loads(row["figures"]) for row in csv.DictReader(file)]
    assert figures[-1]["unseen_ratio"] < 0.985
    assert (flux2_data / "flux2.safetensors").read_bytes() == before
    loaded = load_predictor(tmp_path / "run" / "predictor.safetensors")
    assert loaded.base_model == "tiny-flux2"
    targets = {layer.target for layer in loaded.config.layers}
    assert Target("single_blocks.0.linear1") in targets
    assert Target("img_in") not in targets

    from i2l.i2l_core.host.patch import apply_merged

    pictures = torch.rand(2, 64, 64, 3)
    lora = loaded.predictor.float()(loaded.encoder.float().encode(list(pictures))).lora()
    patched = apply_merged(build("flux2"), lora, 1.0)
    assert len(patched.patches) == len({target.weight for target in targets})


def test_the_node_and_the_command_predict_with_what_was_trained(tmp_path, monkeypatch, capsys):
    import folder_paths

    from i2l.i2l_core.commands import predict
    from i2l.i2l_core.host.lora_model import lora_of
    from i2l.i2l_core.lora_files.file import load
    from i2l.nodes.load import LoadI2LPredictor
    from i2l.nodes.predict import ImagesToLoRA

    config = tables(write_world(tmp_path), write_folder(tmp_path / "set"), tmp_path / "run", plan__steps=2)
    path = train_here(write_config(tmp_path / "config.json", config))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "i2l", ([str(path.parent)], {".safetensors"}))
    predictor = LoadI2LPredictor.execute(path.name)[0]
    image = torch.from_numpy(np.array(picture(1, 2)))[None] / 255
    with torch.inference_mode():
        found = lora_of(ImagesToLoRA.execute(predictor, {"image0": image})[0])
    picture_file = tmp_path / "set" / "images" / "1-2.png"
    out = tmp_path / "style.safetensors"
    assert predict.main([str(picture_file), "--predictor", str(path), "--out", str(out)]) == 0
    written = load(out)
    assert written.base_model == found.base_model == "i2l-tiny"
    assert written.layers.keys() == found.layers.keys()
    for target, layer in found.layers.items():
        assert layer.up.abs().max() > 0
        close(written.layers[target].up @ written.layers[target].down, layer.up @ layer.down, 1e-3)


def test_frozen_weights_stay_as_they_are_and_the_loss_falls():
    base = base_of("lumina2", checkpointing=True, split_fused=False)
    network = base._model.diffusion_model
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    x, sigma = inputs("lumina2", 2)
    pairs, target = loras(base, "lumina2", groups=1), torch.randn(2, *SHAPES["lumina2"])
    optimiser = torch.optim.Adam(leaves(pairs), 0.02)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = (base.velocity(x, sigma, [text("lumina2")] * 2, pairs) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert not any(weight.requires_grad or weight.grad is not None for weight in network.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_what_is_missing_for_a_host_model_is_said(flux2_data, tmp_path, capsys):
    from i2l.i2l_core.commands import train

    for change, message in (
        ({"model": str(tmp_path / "none.safetensors")}, "[base] model: there is no file"),
        ({"id": ""}, "give it an id in [base]"),
        ({"model": str(flux2_data / "vae.safetensors")}, "ComfyUI cannot load vae.safetensors"),
    ):
        config = flux2_tables(flux2_data, tmp_path / "run")
        config["base"] |= change
        assert train.main([str(write_config(tmp_path / "config.json", config))]) == 1
        assert message in capsys.readouterr().err
    config = flux2_tables(flux2_data, tmp_path / "run", pairing__empty_prompts=0.5)
    config["pairing"]["empty_prompts"] = 0.5
    assert train.main([str(write_config(tmp_path / "config.json", config))]) == 1
    assert "lacks text embeddings of some prompts, or of the empty one" in capsys.readouterr().err
    config = flux2_tables(flux2_data, tmp_path / "run")
    config["predictor"]["layers"] = ["nothing.*"]
    assert train.main([str(write_config(tmp_path / "config.json", config))]) == 1
    assert "none of nothing.* matches a layer of the base model; it has" in capsys.readouterr().err


def test_texts_are_made_once_and_are_the_hosts_own(tmp_path):
    """HiDream-O1 reads tokens, so its text encoder needs no weights."""

    from i2l.i2l_core.commands import train
    from i2l.i2l_core.train.config import load_config
    from i2l.i2l_core.train.session import open_data, open_encoded

    write_world(tmp_path)
    config = tables(tmp_path, write_folder(tmp_path / "set"), tmp_path / "run", pairing__empty_prompts=0.5)
    config["base"] = {"kind": "host", "model": "none", "vae": "pixel_space", "text_type": "hidream_o1"}
    path = write_config(tmp_path / "config.json", config)
    assert train.main([str(path), "--prepare"]) == 0
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "cache").rglob("*.safetensors")}
    assert len(files) == 4 + 1  # prompts, and none; pixels need no file
    loaded = load_config(path)
    encoded = open_encoded(loaded, open_data(loaded.data))
    assert encoded.latent(5) is None
    texts = encoded.texts(5, rows()[5]["prompt"])
    assert texts is not None
    assert texts["text_input_ids"][0, -1] == 151673
    assert train.main([str(path), "--prepare"]) == 0
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_latents_are_made_once_and_are_the_hosts_own(tmp_path):
    import comfy.sd

    from i2l.i2l_core.commands import train
    from i2l.i2l_core.demo import files
    from i2l.i2l_core.train.config import load_config
    from i2l.i2l_core.train.session import open_data, open_encoded

    write_world(tmp_path)
    config = tables(tmp_path, write_folder(tmp_path / "set"), tmp_path / "run")
    vae = tmp_path / files.VAE
    config["base"] = {"kind": "host", "model": "none", "vae": str(vae), "text_type": "hidream_o1"}
    path = write_config(tmp_path / "config.json", config)
    assert train.main([str(path), "--prepare"]) == 0
    loaded = load_config(path)
    encoded = open_encoded(loaded, open_data(loaded.data))
    host = comfy.sd.VAE(sd=files.read(vae)[0])
    for index in (0, 7):
        found = encoded.latent(index)
        assert found is not None
        close(found, host.encode(encoded.pixels(index)[None].float() / 255)[0], 1e-5)
    made = list((tmp_path / "run" / "cache" / "latents").rglob("*.safetensors"))
    assert len(made) == len(rows())
    picture = tmp_path / "set" / rows()[7]["image"]
    picture.write_bytes(picture.with_name("0-0.png").read_bytes())
    with pytest.raises(
        I2LError, match=r"line 8 \(images/1-3\.png\) has changed since the start; start again"
    ):
        encoded.latent(7)
