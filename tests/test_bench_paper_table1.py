"""bench.paper_table1 with tiny random CLIPs: the equations by hand, the files, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_clip import BEGIN, END, POSITIONS, SIDE, VOCABULARY, save_clip
from torch import Tensor

from i2l.bench.paper_table1.command import main, table
from i2l.bench.paper_table1.overall import harmonic, overall, telling
from i2l.bench.paper_table1.rows import methods, read_prompts, read_styles
from i2l.bench.paper_table1.sources import SOURCES, TABLE, plan
from i2l.i2l_core.errors import I2LError

pytestmark = pytest.mark.evidence

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
METHODS = ("ours", "theirs")
STYLES = {"ink": ("bold ink", 3), "wax": ("soft wax", 1)}  # style -> (description, references)
PROMPTS = {
    "a/01": ("a cat", "ink"),
    "a/02": ("two dogs", "ink"),
    "b": ("a very long text that is cut", "wax"),
}


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """prompts.jsonl, styles.jsonl, made/METHOD/..., refs/..., no weights."""
    write(
        tmp_path / "prompts.jsonl",
        [{"picture": p, "prompt": text, "style": s} for p, (text, s) in PROMPTS.items()],
    )
    rows, seed = [], 100
    for style, (description, count) in STYLES.items():
        references = [f"refs/{style}{i}.png" for i in range(count)]
        for reference in references:
            paint(tmp_path / reference, seed := seed + 1)
        rows.append({"style": style, "description": description, "references": references})
    write(tmp_path / "styles.jsonl", rows)
    for m, method in enumerate(METHODS):
        for i, name in enumerate(PROMPTS):
            paint(tmp_path / "made" / method / f"{name}.png", 10 * m + i)
    return tmp_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """(the folder for --weights, the model of CLIP, the model of PickScore)."""
    folder = tmp_path_factory.mktemp("weights")
    clip = save_clip(folder / SOURCES["clip"].folder, seed=1)
    return folder, clip, save_clip(folder / SOURCES["pickscore"].folder, seed=2)


def run(world: Path, *more: str | Path) -> int:
    files = [
        "--pictures", world / "made", "--prompts", world / "prompts.jsonl", "--styles", world / "styles.jsonl",
    ]  # fmt: skip
    return main([*map(str, files), *map(str, more)])


def refused(world: Path, capsys: pytest.CaptureFixture[str], *more: str | Path) -> str:
    capsys.readouterr()  # what saving a model said
    assert run(world, "--json", *more) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


# the equations, by hand


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


@torch.no_grad()
def seen(model: Any, path: Path) -> Tensor:
    """The picture's unit embedding, the pixels prepared by hand: they have the model's size already."""
    pixels = torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32) / 255)
    pixels = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    state = model.vision_model(pixel_values=pixels.permute(2, 0, 1)[None]).pooler_output  # HWC -> CHW
    return unit(model.visual_projection(state)[0].double())


@torch.no_grad()
def said(model: Any, text: str) -> Tensor:
    """The text's unit embedding, the tokens by hand: a letter each, and as many as are read."""
    letters = [f"{x}</w>" if i == len(w) - 1 else x for w in text.split() for i, x in enumerate(w)]
    names = [BEGIN, *letters[: POSITIONS - 2], END]
    tokens = torch.tensor([[VOCABULARY.index(name) for name in names]])
    state = model.text_model(input_ids=tokens).pooler_output
    return unit(model.text_projection(state)[0].double())


def scale(model: Any) -> float:
    return float(model.logit_scale.detach().exp())


def test_the_figures_are_their_equations(
    world: Path, weights: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, clip, pick = weights
    assert run(world, "--weights", folder, "--json") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err == ""
    expected = {}
    for method in METHODS:
        rows = []
        for name, (prompt, style) in PROMPTS.items():
            path = world / "made" / method / f"{name}.png"
            e = seen(clip, path)
            refs = [e @ seen(clip, world / f"refs/{style}{i}.png") for i in range(STYLES[style][1])]
            rows.append(
                {
                    "clip_text": scale(clip) * (e @ said(clip, prompt)),
                    "clip_style": scale(clip) * (e @ said(clip, STYLES[style][0])),
                    "pickscore": scale(pick) * (seen(pick, path) @ said(pick, prompt)),
                    "s_txt": e @ said(clip, prompt),
                    "s_img": sum(refs) / len(refs),
                }
            )
        expected[method] = {k: sum(float(r[k]) for r in rows) / len(rows) for k in rows[0]}
    for method, row in expected.items():
        text, image = row["s_txt"], row["s_img"]
        row["harmonic"] = 2 / (1 / text + 1 / image) if text > 0 and image > 0 else 0.0
        wins = [row[k] == max(other[k] for other in expected.values()) for k in ("clip_text", "clip_style")]
        wins.append(row["pickscore"] == max(other["pickscore"] for other in expected.values()))
        row["overall"] = sum(wins) / len(wins)
        assert result["methods"][method] == pytest.approx(row, abs=1e-4)
    assert expected["ours"]["s_img"] != pytest.approx(expected["theirs"]["s_img"], abs=1e-3)
    assert result["overall_of"] == ["clip_text", "clip_style", "pickscore"]
    assert result["left_out"].keys() == {"aesthetic", "image_reward", "hpsv2", "hpsv3"}
    assert result["texts_cut"] == {"clip": 1, "pickscore": 1}
    assert result["prompts"] == len(PROMPTS)


def test_says_what_is_left_out_and_ends_with_the_result(
    world: Path, weights: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = weights[0] / SOURCES["clip"].folder
    assert run(world, "--clip", clip) == 0
    out, err = capsys.readouterr()
    *lines, last = out.splitlines()
    assert "harmonic" in lines[0]
    assert json.loads(last)["weights"] == {"clip": str(clip)}
    assert "pickscore is left out: no files: give --pickscore FOLDER" in err
    assert "clip reads only the start of 1 texts" in err


def test_one_method_has_no_overall(
    world: Path, weights: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(world / "prompts.jsonl", [{"picture": "02.PNG", "prompt": "a cat", "style": "ink"}])
    (world / "made" / "ours" / "a" / "01.png").unlink()
    options = ["--weights", str(weights[0]), "--metrics", "clip_text", "s_txt", "--json"]
    files = ["--prompts", str(world / "prompts.jsonl"), "--styles", str(world / "styles.jsonl")]
    assert main(["--pictures", str(world / "made" / "ours" / "a"), *files, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {k: list(v) for k, v in result["methods"].items()} == {"a": ["clip_text", "s_txt"]}
    assert result["overall_of"] == []


# one figure of several

VALUES = st.floats(-50, 50).map(lambda x: round(x, 2))
TABLES = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.lists(VALUES, min_size=n, max_size=n), min_size=1, max_size=4)
)


def as_scores(columns: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    return {
        str(m): {str(k): x for k, x in enumerate(row)} for m, row in enumerate(zip(*columns, strict=True))
    }


def overall_of(columns: Sequence[Sequence[float]]) -> Mapping[str, float] | None:
    return overall(as_scores(columns), [str(k) for k in range(len(columns))])


def test_overall_of_an_example() -> None:
    """Thirds by hand: (0, 1, 1/4) and (1, 0, 0) with a column in which nobody differs."""
    assert overall_of([[1.0, 5.0, 2.0], [0.3, 0.1, 0.1], [7.0, 7.0, 7.0]]) == pytest.approx(
        {"0": 0.5, "1": 0.5, "2": 0.125}
    )


@settings(max_examples=30)
@given(TABLES, st.floats(0.1, 100), st.floats(-100, 100))
def test_overall_knows_no_unit(columns: list[list[float]], scale: float, shift: float) -> None:
    moved = [[scale * x + shift for x in columns[0]], *columns[1:]]
    found, again = overall_of(columns), overall_of(moved)
    assert again == (None if found is None else pytest.approx(found, abs=1e-6))
    assert found is None or all(0 <= value <= 1 for value in found.values())


@settings(max_examples=30)
@given(TABLES)
def test_overall_keeps_the_order(columns: list[list[float]]) -> None:
    """Whoever is nowhere worse is not worse over all; best everywhere is 1, and worst everywhere 0."""
    found = overall_of(columns)
    if found is None:
        assert all(len(set(column)) == 1 for column in columns)
        return
    rows = list(zip(*columns, strict=True))
    for a, row in enumerate(rows):
        for b, other in enumerate(rows):
            if all(x >= y for x, y in zip(row, other, strict=True)):
                assert found[str(a)] >= found[str(b)] - 1e-12
    ahead = [*columns, [float(i == 0) for i in range(len(rows))]]
    best, worst = ([pick(column) for column in ahead] for pick in (max, min))
    ends = overall_of([[b, w, *column] for b, w, column in zip(best, worst, ahead, strict=True)])
    assert ends is not None
    assert (ends["0"], ends["1"]) == (pytest.approx(1), pytest.approx(0))


def test_a_metric_without_differences_has_no_say() -> None:
    scores = as_scores([[1.0, 2.0], [3.0, 3.0]])
    assert telling(scores, ["0", "1"]) == ["0"]
    assert overall(scores, ["0", "1"]) == {"0": 0.0, "1": 1.0}
    assert overall(scores, ["1"]) is None
    assert overall({"alone": {"0": 1.0}}, ["0"]) is None


@pytest.mark.parametrize(("text", "image", "mean"), [(0.312, 0.596, 0.4096), (0.311, 0.589, 0.407)])
def test_harmonic_mean_of_the_paper(text: float, image: float, mean: float) -> None:
    """StyleDrop and DreamStyler in Table 1 of the SVD paper: 0.409 and 0.407."""
    assert harmonic(text, image) == pytest.approx(mean, abs=1e-4)


@settings(max_examples=30)
@given(st.floats(1e-3, 1), st.floats(1e-3, 1), st.floats(-1, 0))
def test_harmonic_mean(a: float, b: float, not_above_0: float) -> None:
    mean = harmonic(a, b)
    assert mean == pytest.approx(2 / (1 / a + 1 / b))
    assert min(a, b) - 1e-12 <= mean <= (a * b) ** 0.5 + 1e-12
    assert mean == harmonic(b, a)
    assert harmonic(a, not_above_0) == harmonic(not_above_0, b) == 0


def test_the_table_marks_best_and_second() -> None:
    lines = table({"x": {"k": 0.1, "t": 1.0}, "y": {"k": 0.3, "t": 1.0}, "z": {"k": 0.2, "t": 1.0}}).split(
        "\n"
    )
    assert lines[2:] == [
        "| x | 0.1000 | 1.0000 |",
        "| y | **0.3000** | 1.0000 |",
        "| z | _0.2000_ | 1.0000 |",
    ]


# files


def test_texts_may_hold_any_character(tmp_path: Path) -> None:
    text = 'ein "Haus"\u2028\u0085zwei\n'
    styles = read_styles(write(tmp_path / "s.jsonl", [{"style": "ink", "description": text}]))
    assert styles["ink"].description == text
    path = tmp_path / "p.jsonl"
    line = json.dumps({"picture": "v1.5 b.webp", "prompt": text, "style": "ink"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"\n{line}\r\n\n".encode())
    (sample,) = read_prompts(path, styles)
    assert (sample.picture, sample.prompt, sample.style.references) == ("v1.5 b", text, ())


def test_methods_are_folders_and_hidden_ones_are_not(world: Path) -> None:
    (world / "made" / ".checkpoints").mkdir()
    (world / "made" / "notes.txt").write_text("mine", "utf-8")
    assert list(methods(world / "made")) == list(METHODS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "p.jsonl has no rows"),
        (["ink"], "p.jsonl line 1 must be a JSON object, got str"),
        ([{"picture": "a", "prompt": "b"}], "p.jsonl line 1 lacks style"),
        ([{"picture": "a", "prompt": " ", "style": "ink"}], "line 1: prompt must be a text, got ' '"),
        ([{"picture": 1, "prompt": "b", "style": "ink"}], "line 1: picture must be a text, got 1"),
        ([{"picture": "a", "prompt": "b", "style": "wax"}], "the file of styles has no style 'wax'"),
        ([{"picture": "a", "prompt": "b", "style": "ink", "seed": "1"}], "unknown entries: seed"),
        ([{"picture": p, "prompt": "b", "style": "ink"} for p in ("a.png", "a.jpg")], "line 2: there is a picture a"),
    ],
)  # fmt: skip
def test_refuses_prompts(tmp_path: Path, rows: list[Any], message: str) -> None:
    styles = read_styles(write(tmp_path / "s.jsonl", [{"style": "ink"}]))
    with pytest.raises(I2LError) as caught:
        read_prompts(write(tmp_path / "p.jsonl", rows), styles)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"style": "ink"}, {"style": "ink"}], "line 2: there is a style ink already"),
        ([{"style": "ink", "references": "a.png"}], "references must be a list of picture files"),
        ([{"style": "ink", "references": ["no.png"]}], "line 1: 1 references are not there"),
        ([{"style": "ink", "description": 3}], "description must be a text, got 3"),
    ],
)
def test_refuses_styles(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(I2LError, match=message):
        read_styles(write(tmp_path / "s.jsonl", rows))


def test_refuses_what_is_no_json_and_no_text(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'{"style": \n')
    with pytest.raises(I2LError, match=r"s\.jsonl line 1 is not a JSON object"):
        read_styles(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(I2LError, match=r"cannot read .*s\.jsonl"):
        read_styles(path)


def test_pictures_and_prompts_belong_together(
    world: Path, weights: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--weights", weights[0])
    made = world / "made"
    paint(made / "ours" / "c.png", 1)
    assert "has 1 pictures that no prompt names: c. Add" in refused(world, capsys, *given)
    (made / "ours" / "c.png").rename(made / "ours" / "b.webp")
    assert "b.png and b.webp differ only in their suffix" in refused(world, capsys, *given)
    (made / "ours" / "b.webp").unlink()
    (made / "theirs" / "a" / "02.png").unlink()
    assert "lacks 1 of the 3 pictures that the prompts name: a/02." in refused(world, capsys, *given)
    paint(made / "a.png", 1)
    assert "has pictures beside folders (a.png)" in refused(world, capsys, *given)
    assert "expected a folder of pictures" in refused(world, capsys, *given, "--pictures", made / "a.png")


def test_refuses_a_broken_picture(
    world: Path, weights: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "made" / "theirs" / "b.png"
    path.write_bytes(path.read_bytes()[:900])
    assert f"{path}: the picture is broken or missing" in refused(world, capsys, "--weights", weights[0])


def test_styles_need_what_is_measured(
    world: Path, weights: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(world / "styles.jsonl", [{"style": "ink", "description": "bold"}, {"style": "wax"}])
    given = ("--clip", weights[0] / SOURCES["clip"].folder)
    message = refused(world, capsys, *given)
    assert "1 of 2 styles have no description, which clip_style needs: wax. Add" in message
    message = refused(world, capsys, *given, "--metrics", "s_img")
    assert "2 of 2 styles have no references, which s_img needs: ink, wax." in message
    assert run(world, *given, "--metrics", "clip_text", "--json") == 0


def test_refuses_metrics_and_folders(tmp_path: Path, weights: tuple[Path, Any, Any]) -> None:
    def message(*args: Any) -> str:
        with pytest.raises(I2LError) as caught:
            plan(*args)
        return str(caught.value)

    assert message(["fid"], None, {}).startswith(f"there is no metric fid; there are {', '.join(TABLE)}")
    assert "hpsv3 has no files: give --hpsv3 FOLDER" in message(["hpsv3"], weights[0], {})
    assert "DiffSynth-Studio/ImageMetrics" in message(["hpsv3"], weights[0], {})
    assert "there are no weights to measure with" in message(None, None, {})
    assert "is not a folder" in message(None, tmp_path / "no", {})
    missing = message(None, None, {"pickscore": tmp_path})
    assert missing.startswith(f"{tmp_path / 'config.json'} is missing, which pickscore needs: get it from")
    assert plan(["s_img"], weights[0], {}).figures == ("s_img",)


def test_refuses_weights_of_another_architecture(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clip"
    save_clip(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))

    def message(changed: Mapping[str, Any]) -> str:
        (folder / "config.json").write_text(json.dumps({**config, **changed}), "utf-8")
        return refused(world, capsys, "--clip", folder)

    assert "expected a CLIP, and its config.json says model_type 'siglip'" in message(
        {"model_type": "siglip"}
    )
    deeper = {"vision_config": {**config["vision_config"], "num_hidden_layers": 3}}
    assert "of another architecture than its config.json" in message(deeper)
    shallower = {"text_config": {**config["text_config"], "num_hidden_layers": 1}}
    assert "of another architecture than its config.json" in message(shallower)
    assert "of another architecture than its config.json" in message({"projection_dim": 9})
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert "cannot read a CLIP from it" in message({})


def test_refuses_weights_that_give_no_number(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_clip(tmp_path / "clip")
    with torch.no_grad():
        model.visual_projection.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "clip")
    assert "clip_text gives nan; its weights are broken" in refused(
        world, capsys, "--clip", tmp_path / "clip"
    )
