"""Configs of trainings: strict, the same from TOML and JSON, and what a checkpoint must agree on."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from tiny_training import tables

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.files.fingerprint import content_fingerprint
from i2l.i2l_core.train import parse
from i2l.i2l_core.train.config import RunTable, differences, load_config
from i2l.tools.host import ROOT

EXAMPLES = sorted((ROOT / "i2l_core" / "train" / "configs").glob("*.toml"))


def written(folder: Path, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(tables(folder, folder / "rows.jsonl", folder / "run", **changes)))
    return path


def test_toml_and_json_give_the_same_config(tmp_path):
    table = tables(tmp_path, tmp_path / "rows.jsonl", tmp_path / "run", predictor__layers=["*.w1", "*.w2"])
    lines = []
    for name, entries in table.items():
        lines += [f"[{name}]", *(f"{entry} = {json.dumps(value)}" for entry, value in entries.items())]
    (tmp_path / "config.toml").write_text("\n".join(lines))
    (tmp_path / "config.json").write_text(json.dumps(table))
    found = load_config(tmp_path / "config.toml")
    assert found == load_config(tmp_path / "config.json")
    assert found.predictor.layers == ("*.w1", "*.w2")
    assert (found.plan.lr, type(found.pairing.gray)) == (0.01, float)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_configs(path):
    assert load_config(path).plan.steps > 0


def test_there_is_an_example_for_each_base_model():
    assert {path.stem for path in EXAMPLES} == {"tiny-world", "z-image", "flux2-klein-4b", "hidream-o1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan__step": 6}, r"config\.json: \[plan\] has unknown entries: step\. Known: steps, batch"),
        ({"nonsense__x": 1}, r"has unknown entries: nonsense\. Known: base, encoder"),
        ({"plan__steps": 6.5}, r"plan\.steps must be a whole number, got 6\.5"),
        ({"plan__steps": True}, r"plan\.steps must be a whole number, got True"),
        ({"plan__steps": 0}, r"\[plan\] a plan needs positive steps"),
        ({"plan__lr": "fast"}, r"plan\.lr must be a number, got 'fast'"),
        ({"predictor__layers": "*"}, r"predictor\.layers must be a list, got '\*'"),
        ({"predictor__layers": [1]}, r"predictor\.layers\[0\] must be a text, got 1"),
        ({"base__kind": "sdxl"}, r"\[base\] kind must be one of tiny-world, host, got 'sdxl'"),
        ({"base__kind": "host"}, r'\[base\] kind = "host" needs model'),
        ({"data__height": 60}, r"\[data\] height and width must be positive multiples of 16, got 60x64"),
        ({"pairing__gray": 1.5}, r"\[pairing\] gray must be a fraction from 0 to 1, got 1\.5"),
        ({"run__micro_batch": 0}, r"\[run\] micro_batch must be 1 or more, got 0"),
        (
            {"run__sharding": "fsdp", "optimiser__kind": "muon"},
            r"\"muon\" needs whole matrices: use \"adamw\"",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    with pytest.raises(I2LError, match=message):
        load_config(written(tmp_path, **change))


def test_files_that_are_no_configs_are_named(tmp_path):
    with pytest.raises(I2LError, match=r"cannot read the config .*none\.toml"):
        load_config(tmp_path / "none.toml")
    for name, text, message in (
        ("a.toml", "[base", r"a\.toml is not valid TOML"),
        ("a.json", "{", r"a\.json is not valid JSON"),
        ("b.json", "[]", r"b\.json: expected a table, got list"),
        ("c.json", '{"base": 3}', r"c\.json: lacks data, encoder, plan, predictor, run"),
        ("a.yaml", "", r"a\.yaml: expected a \.toml or \.json config"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(I2LError, match=message):
            load_config(tmp_path / name)


def test_without_a_toml_reader_json_is_the_way(tmp_path, monkeypatch):
    real = importlib.import_module

    def older(name):
        if name in ("tomllib", "tomli"):
            raise ModuleNotFoundError(name)
        return real(name)

    monkeypatch.setattr(parse.importlib, "import_module", older)
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(I2LError, match=r"pip install tomli, or write the config as \.json"):
        load_config(tmp_path / "config.toml")


def test_a_checkpoint_must_agree_on_what_is_learned_and_on_nothing_else(tmp_path):
    for name in ("predictor.safetensors", "backbone.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    fixed = load_config(written(tmp_path)).fixed()
    free = {
        "run__micro_batch": 2,
        "run__keep": 9,
        "plan__steps": 99,
        "data__workers": 3,
        "base__checkpointing": True,
    }
    assert differences(load_config(written(tmp_path, **free)).fixed(), fixed) == []
    changed = load_config(written(tmp_path, plan__lr=0.5, run__precision="bf16")).fixed()
    assert differences(changed, fixed) == ["plan.lr is 0.5, was 0.01", "run.precision is 'bf16', was 'no'"]
    (tmp_path / "backbone.safetensors").write_bytes(b"another one of these")
    (problem,) = differences(load_config(written(tmp_path)).fixed(), fixed)
    assert problem.startswith("files.base model is ")
    with pytest.raises(I2LError, match=r"cannot read .*nowhere"):
        load_config(written(tmp_path, encoder__source=str(tmp_path / "nowhere"))).fixed()


def test_a_fingerprint_sees_size_beginning_end_and_what_lies_between(tmp_path):
    path = tmp_path / "file"
    content = bytearray(8 << 20)
    seen = set()
    for place in (None, 0, len(content) - 1, (len(content) - (1 << 16)) * 30 // 63):
        if place is not None:
            content[place] = 1
        path.write_bytes(content)
        seen.add(content_fingerprint(path))
    path.write_bytes(content + b"\0")
    assert len(seen | {content_fingerprint(path)}) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, -(2**63) - 1, "a\0b", "\ud800"])
def test_values_that_no_setting_can_have_are_refused_by_name(value):
    name = "folder" if isinstance(value, str) else "sheet_cfg"
    with pytest.raises(I2LError, match=rf"run\.{name} (must be|holds)"):
        parse.build(RunTable, {"folder": "x", name: value}, "run")
