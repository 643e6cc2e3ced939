"""Training as a tool: the same result for any number of processes and micro-batches, exact resume, clear ends."""

from __future__ import annotations

import csv
import functools
import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_training import (
    STYLES,
    SUBJECTS,
    as_one_of,
    free_port,
    killed_at,
    on_a_full_disk,
    picture,
    rows,
    said,
    start,
    tables,
    train_here,
    write_config,
    write_folder,
    write_world,
)

from i2l.i2l_core.commands import train as command
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.query.file import load_predictor
from i2l.i2l_core.train.ema import Ema


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Before the run that others are compared with, too: sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def whole(world, data, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train_here(write_config(folder / "config.json", tables(world, data, folder / "run")))
    return folder / "run"


def state_of(folder, step=6):
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    return {
        f"{part}/{name}": tensor
        for part in ("predictor", "average", "optimiser")
        for name, tensor in load_file(checkpoint / f"{part}.safetensors").items()
    }


def log_of(folder):
    with (folder / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    wrong = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not wrong


def assert_close(found, expected):
    """Weights, and the optimiser's mean gradients: a loss of another scale would not show in Adam's weights.

    As norms of whole tensors: where a gradient is next to nothing, Adam makes a step of its rounding.
    """
    for name, tensor in expected.items():
        error = float((found[name] - tensor).norm() / tensor.norm().clamp(min=1e-12))
        assert error < 1e-3, f"{name}: {error}"


def test_a_run_learns_and_leaves_log_checkpoints_and_a_predictor_that_loads(whole):
    log = log_of(whole)
    assert [int(row["step"]) for row in log] == [1, 2, 3, 4, 5, 6]
    figures = [json.loads(row["figures"]) for row in log]
    assert [one["rate"] for one in figures] == pytest.approx([0.005, *[0.01] * 5])
    assert all(one["gradient"] > 0 for one in figures)
    measured = [one["unseen_ratio"] for one in figures if "unseen_ratio" in one]
    assert len(measured) == 2
    assert measured[1] < measured[0] < 1
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    loaded = load_predictor(whole / "predictor.safetensors")
    assert loaded.base_model == "i2l-tiny"
    assert loaded.meta["about"] == {"steps": "6"}
    average = {k.removeprefix("average/"): v for k, v in state_of(whole).items() if k.startswith("average/")}
    for name, tensor in loaded.predictor.state_dict().items():
        torch.testing.assert_close(tensor, average[name].bfloat16(), atol=0, rtol=0)
    lora = loaded.predictor.float()(torch.randn(1, 16, 32)).lora()
    assert max(layer.up.abs().max() for layer in lora.layers.values()) > 0


@pytest.mark.parametrize("change", [{"run__micro_batch": 1}, {"run__micro_batch": 2, "data__workers": 1}])
def test_accumulation_equals_the_big_batch(world, data, whole, tmp_path, change):
    train_here(write_config(tmp_path / "config.json", tables(world, data, tmp_path / "run", **change)))
    assert_close(state_of(tmp_path / "run"), state_of(whole))


def test_gradient_checkpointing_changes_nothing(world, data, whole, tmp_path):
    train_here(
        write_config(
            tmp_path / "config.json", tables(world, data, tmp_path / "run", base__checkpointing=True)
        )
    )
    assert_close(state_of(tmp_path / "run"), state_of(whole))


def run_two(config):
    port = free_port()
    processes = [start(config, functools.partial(as_one_of, n, 2, port), n) for n in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], said(config) + said(config, 1)


def assert_same_log(found, expected, exact=False):
    """`found` may have more figures: a shorter run measures at its end too."""
    for row, other in zip(found, expected, strict=True):
        figures = json.loads(row["figures"])
        for name, figure in json.loads(other["figures"]).items():
            assert figures[name] == (figure if exact else pytest.approx(figure, rel=1e-3, abs=2e-4))
        assert float(row["loss"]) == (
            float(other["loss"]) if exact else pytest.approx(float(other["loss"]), abs=2e-6)
        )


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(world, data, whole, tmp_path):
    config = tables(world, data, tmp_path / "run", run__micro_batch=1)
    run_two(write_config(tmp_path / "config.json", config))
    assert_close(state_of(tmp_path / "run"), state_of(whole))
    assert_same_log(log_of(tmp_path / "run"), log_of(whole))


@pytest.mark.slow
def test_one_process_goes_on_from_what_two_have_learned_in_shards(world, data, whole, tmp_path):
    config = tables(world, data, tmp_path / "run", run__micro_batch=2, run__sharding="fsdp", plan__steps=4)
    run_two(write_config(tmp_path / "config.json", config))
    train_here(write_config(tmp_path / "config.json", tables(world, data, tmp_path / "run")))
    assert_close(state_of(tmp_path / "run"), state_of(whole))
    assert_same_log(log_of(tmp_path / "run"), log_of(whole))


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_operation_on_files_goes_on_bit_for_bit(world, data, whole, tmp_path):
    folder, config = tmp_path / "run", tmp_path / "config.json"
    write_config(config, tables(world, data, folder, plan__steps=4, plan__save_every=1, run__keep=1))
    left, kills = set(), 0
    for operation in range(1, 60):
        process = start(config, functools.partial(killed_at, operation, str(folder)))
        process.join()
        left |= {path.name.split("-")[0] for path in (folder / "checkpoints").glob("*")}
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, said(config)
        kills += 1
    assert kills > 15
    assert left == {"step", "partial"}  # some of them in the middle of a checkpoint
    assert_equal(state_of(folder, 4), state_of(whole, 4))
    assert_same_log(log_of(folder), log_of(whole)[:4], exact=True)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoints", "log.csv", "predictor.safetensors"]


def test_a_checkpoint_of_another_training_is_refused(world, data, tmp_path):
    folder, config = tmp_path / "run", tmp_path / "config.json"
    train_here(write_config(config, tables(world, data, folder, plan__steps=2)))
    for change, said_ in (
        ({"plan__lr": 0.02}, r"another training: plan\.lr is 0\.02, was 0\.01\. Use its config, or another"),
        ({"predictor__rank": 3}, r"predictor\.rank is 3, was 2"),
        ({"pairing__gray": 0.0}, r"pairing\.gray is 0\.0, was 0\.2"),
    ):
        with pytest.raises(I2LError, match=said_):
            train_here(write_config(config, tables(world, data, folder, **change)))
    more = data.parent / "more.jsonl"
    more.write_text(data.read_text() + json.dumps({**rows()[0], "prompt": "two star on the left"}) + "\n")
    with pytest.raises(I2LError, match=r"data rows\.fingerprint is .*, was "):
        train_here(write_config(config, tables(world, more, folder)))
    other = write_world(tmp_path / "other")
    weights = bytearray((other / "backbone.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "backbone.safetensors").write_bytes(weights)
    with pytest.raises(I2LError, match=r"files\.base model is .*, was "):
        train_here(write_config(config, tables(other, data, folder)))


def test_a_damaged_checkpoint_is_named(world, data, tmp_path):
    folder, config = tmp_path / "run", tmp_path / "config.json"
    train_here(write_config(config, tables(world, data, folder, plan__steps=2)))
    part = folder / "checkpoints" / "step-00000002" / "optimiser.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(I2LError, match=r"optimiser\.safetensors is damaged: .*Remove its step-\.\.\. folder"):
        train_here(write_config(config, tables(world, data, folder)))


@pytest.mark.parametrize("killed", [False, True])
def test_a_full_disk_or_a_kill_while_a_file_is_written_leaves_the_checkpoint_before(
    world, data, whole, tmp_path, killed
):
    folder, config = tmp_path / "run", tmp_path / "config.json"
    write_config(config, tables(world, data, folder))
    write_config(tmp_path / "short.json", tables(world, data, folder, plan__steps=2, run__measure_every=0))
    train_here(tmp_path / "short.json")
    before = state_of(folder, 2)
    process = start(config, functools.partial(on_a_full_disk, 1 << 16, killed))
    process.join()
    checkpoints = sorted(p.name for p in (folder / "checkpoints").iterdir())
    if killed:
        assert process.exitcode == -signal.SIGXFSZ
        assert checkpoints == ["partial-00000004", "step-00000002"]
    else:
        assert process.exitcode == 1
        assert "cannot save the checkpoint of step 4" in said(config)
        assert "Earlier checkpoints are whole; make room and start again" in said(config)
        assert checkpoints == ["step-00000002"]
    assert_equal(state_of(folder, 2), before)
    train_here(config)
    assert_equal(state_of(folder), state_of(whole))


def test_a_loss_that_is_no_number_ends_the_run_and_names_its_batch(world, data, tmp_path):
    bad = data.parent / "bad.jsonl"
    changed = rows()
    save_file({"latent": torch.full((16, 8, 8), float("nan"))}, data.parent / "nan.safetensors")
    for row in changed:
        if row["style"] in ("style-0", "style-3"):
            row["latent"] = "nan.safetensors"
    bad.write_text("".join(json.dumps(row) + "\n" for row in changed))
    folder = tmp_path / "run"
    config = write_config(
        tmp_path / "config.json", tables(world, bad, folder, plan__steps=20, plan__save_every=1)
    )
    with pytest.raises(
        I2LError,
        match=r"the loss is nan .* was not taken.*bad-step-.*is the last checkpoint|no checkpoint yet",
    ):
        train_here(config)
    (described,) = folder.glob("bad-step-*-device-0.json")
    step = int(described.name.split("-")[2])
    assert [p.name for p in (folder / "checkpoints").glob("*")][-1:] == ([f"step-{step:08d}"] if step else [])
    names = [
        target["name"]
        for part in json.loads(described.read_text())
        for pair in part["pairs"]
        for target in pair["targets"]
    ]
    assert any("images/0-" in name or "images/3-" in name for name in names)
    for tensors in folder.rglob("predictor.safetensors"):
        assert all(torch.isfinite(t).all() for t in load_file(tensors).values())


def test_a_broken_picture_is_named_and_nothing_before_it_is_lost(world, data, whole, tmp_path):
    root = write_folder(tmp_path / "set").parent
    broken = sorted((root / "images").glob("2-*.png"))
    whole_pictures = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    config = write_config(
        tmp_path / "config.json",
        tables(world, root / "rows.jsonl", tmp_path / "run", plan__save_every=1, run__measure_every=0),
    )
    with pytest.raises(
        I2LError, match=r"rows\.jsonl line \d+ \(images/2-\d\.png\): the picture is broken or missing \("
    ):
        train_here(config)
    for path, content in zip(broken, whole_pictures, strict=True):
        path.write_bytes(content)
    train_here(config)
    assert_equal(state_of(tmp_path / "run"), state_of(whole))


def test_every_picture_can_be_checked_before(world, tmp_path, capsys):
    root = write_folder(tmp_path / "set").parent
    config = write_config(tmp_path / "config.json", tables(world, root / "rows.jsonl", tmp_path / "run"))
    assert command.main([str(config), "--check"]) == 0
    assert "all 32 pictures can be read" in capsys.readouterr().err
    (root / "images" / "0-1.png").write_bytes(b"no picture")
    (root / "images" / "5-2.png").unlink()
    assert command.main([str(config), "--check"]) == 1
    said = capsys.readouterr().err
    assert "2 of 32 pictures are broken: rows.jsonl line 2 (images/0-1.png)" in said
    assert "(images/5-2.png)" in said
    assert not (tmp_path / "run").exists()


# CPUs have no fused norm for this, GPUs norm in float32
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_bfloat16_moves_as_float32_does_and_keeps_float32_weights(world, data, whole, tmp_path):
    config = tables(world, data, tmp_path / "run", run__precision="bf16")
    train_here(write_config(tmp_path / "config.json", config))
    found, expected = state_of(tmp_path / "run"), state_of(whole)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert not torch.equal(found["predictor/queries"], expected["predictor/queries"])
    for row, other in zip(log_of(tmp_path / "run"), log_of(whole), strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=0.01)
        gradients = [json.loads(one["figures"])["gradient"] for one in (row, other)]
        assert gradients[0] == pytest.approx(gradients[1], rel=0.2)


def test_sample_sheets_show_references_and_both_pictures(world, data, tmp_path):
    changes = {"plan__steps": 2, "run__sheet_every": 2, "run__sheet_styles": 2, "run__sheet_steps": 2}
    train_here(write_config(tmp_path / "config.json", tables(world, data, tmp_path / "run", **changes)))
    (path,) = (tmp_path / "run" / "sheets").iterdir()
    assert path.name == "step-00000002.png"
    sheet = np.asarray(Image.open(path).convert("RGB"))
    for top in (34, 252):
        lefts = range(8, sheet.shape[1] - 8, 200)
        row = [sheet[top : top + 192, left : left + 192] for left in lefts]
        shown = [cell for cell in row[:-4] if (cell != 255).any()]
        assert 1 <= len(shown) <= 3
        enlarged = [
            np.asarray(picture(s, n).resize((192, 192), Image.Resampling.LANCZOS)).astype(int)
            for s in range(STYLES)
            for n in range(len(SUBJECTS))
        ]
        for cell in shown:
            assert min(abs(cell - one).max() for one in enlarged) <= 1
        for bare, styled in (row[-4:-2], row[-2:]):
            assert bare.std() > 1
            assert (bare != styled).any()


def test_tensorboard_shows_the_log(world, data, whole, tmp_path):
    pytest.importorskip("tensorboard", reason="requirements-train.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tmp_path / "config.json"
    for steps in (3, 6):  # stopped and gone on
        changes = {"plan__steps": steps, "plan__save_every": 2, "run__tensorboard": True}
        train_here(write_config(config, tables(world, data, tmp_path / "run", **changes)))
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"loss", "rate", "gradient", "unseen_ratio"} <= set(board.Tags()["scalars"])
    log = log_of(tmp_path / "run")
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    for event, row in zip(board.Scalars("loss"), log, strict=True):
        assert event.value == pytest.approx(float(row["loss"]), abs=1e-6)


def test_the_average_is_exponential_with_a_quick_start():
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.double))
    average, expected = Ema({"w": weight}, 0.6), torch.zeros(2, dtype=torch.double)
    for step in range(12):
        with torch.no_grad():
            weight.copy_(torch.tensor([1.0, step]))
        average.update(step)
        keep = min(0.6, (step + 1) / (step + 10))
        expected = keep * expected + (1 - keep) * weight.detach()
    torch.testing.assert_close(average.tensors["w"], expected)
    average.swap()
    torch.testing.assert_close(weight.detach(), expected)
    average.swap()
    assert torch.equal(weight.detach(), torch.tensor([1.0, 11.0], dtype=torch.double))
