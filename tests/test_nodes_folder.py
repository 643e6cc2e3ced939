"""A folder of styles: what is listed, what is read, what is left out, and that nothing leaves the input folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.references import references_from


@pytest.fixture
def folder(host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import folder_paths

    inside = tmp_path / "input"
    (inside / "styles").mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "input_directory", str(inside))
    return inside / "styles"


def picture(path: Path, colour: str, size: tuple[int, int] = (32, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def run(name: str = "styles", most: int = 8) -> tuple[list[Any], list[str], str]:
    from i2l.nodes.folder import ImagesFromFolder

    out = ImagesFromFolder.execute(name, most)
    return out[0], out[1], out[2]


def test_each_sub_folder_is_a_style(folder: Path):
    for style, colours in {"ink": ["black", "gray"], "oil": ["red"]}.items():
        for i, colour in enumerate(colours):
            picture(folder / style / f"{i}.png", colour)
    (folder / "oil" / "notes.txt").write_text("not a picture")
    (folder / ".hidden").mkdir()
    references, names, report = run()
    assert names == ["ink", "oil"]
    assert report == "2 styles, 3 pictures"
    ink, oil = (references_from({"image0": one}) for one in references)
    assert [float(one.pixels.mean()) for one in ink] == [0.0, pytest.approx(128 / 255)]
    assert torch.equal(oil[0].pixels[0, 0], torch.tensor([1.0, 0, 0]))
    assert len(run(most=1)[0][0]) == 1


def test_broken_pictures_are_named_and_the_rest_goes_on(folder: Path):
    picture(folder / "good" / "a.png", "blue")
    (folder / "good" / "b.png").write_bytes(b"nothing that Pillow reads")
    picture(folder / "good" / "c.png", "blue", size=(4000, 10))
    (folder / "broken").mkdir()
    (folder / "broken" / "x.jpg").write_bytes(b"")
    (folder / "empty").mkdir()
    references, names, report = run()
    assert (names, len(references[0])) == (["good"], 1)
    lines = report.splitlines()
    assert lines[0] == "1 styles, 1 pictures"
    assert any(line.startswith("left out: good/b.png: expected a picture") for line in lines)
    assert any(line.startswith("left out: good/c.png: the picture is") for line in lines)
    assert "left out: broken: it holds no picture that can be read" in lines
    assert "left out: empty: it holds no picture that can be read" in lines


def test_pictures_are_read_when_their_turn_comes_upright_and_not_too_large(folder: Path):
    path = folder / "big" / "a.jpg"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (3000, 1500), "green").save(path, exif=exif)
    (style,), _, _ = run()
    assert style[0].size == (1024, 512)
    path.unlink()
    with pytest.raises(I2LError, match=r"a\.jpg: expected a picture"):
        references_from({"image0": style})


def test_only_folders_of_folders_in_input_are_listed(folder: Path):
    from i2l.nodes.folder import EXAMPLES, ImagesFromFolder

    combo: Any = ImagesFromFolder.define_schema().inputs[0]
    assert combo.options == [EXAMPLES]
    picture(folder / "ink" / "a.png", "black")
    picture(folder.parent / "single.png", "black")
    picture(folder.parent / "top" / "a.png", "black")
    combo = ImagesFromFolder.define_schema().inputs[0]
    assert combo.options == [".", "styles", EXAMPLES]
    assert run(".")[1] == ["top"]  # styles itself has no pictures of its own


def test_the_examples_that_ship_are_there_without_any_folder(folder: Path):
    from i2l.nodes.folder import EXAMPLES, ImagesFromFolder

    references, names, report = run(EXAMPLES, most=3)
    assert names == ["chalk", "clay", "poster", "watercolour"]
    assert [len(one) for one in references] == [3] * 4
    assert report == "4 styles, 12 pictures"
    assert ImagesFromFolder.fingerprint_inputs(EXAMPLES, 3) == ImagesFromFolder.fingerprint_inputs(
        EXAMPLES, 3
    )


def test_a_folder_that_windows_writes_with_backslashes_is_found(folder: Path):
    from i2l.nodes.folder import ImagesFromFolder

    picture(folder / "old" / "ink" / "a.png", "black")
    for name in ("styles\\old", "styles/old"):
        assert ImagesFromFolder.validate_inputs(name) is True
        assert run(name)[1] == ["ink"]
        assert ImagesFromFolder.fingerprint_inputs(name, 8) == ImagesFromFolder.fingerprint_inputs(
            "styles/old", 8
        )
    for name in ("..\\outside", "styles\\..\\..\\outside", "styles\\gone"):
        picture(folder.parent.parent / "outside" / "secret" / "a.png", "black")
        assert "there is no folder" in str(ImagesFromFolder.validate_inputs(name))


def test_a_folder_whose_name_holds_a_backslash_is_itself(folder: Path):
    picture(folder.parent / "a\\b" / "ink" / "a.png", "black")
    picture(folder.parent / "a" / "b" / "oil" / "a.png", "red")
    assert run("a\\b")[1] == ["ink"]


@pytest.mark.parametrize("name", ["..", "../outside", "/etc", "nowhere", "styles/../../outside"])
def test_no_name_leaves_the_input_folder(folder: Path, name: str):
    picture(folder.parent.parent / "outside" / "secret" / "a.png", "black")
    with pytest.raises(I2LError, match=r"there is no folder .* make one there"):
        run(name)


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "self/ink", "\ud800"])
def test_names_that_no_folder_has_are_refused_in_one_line(folder: Path, name: str):
    (folder.parent / "self").symlink_to(folder.parent / "self")
    with pytest.raises(I2LError, match="there is no folder") as caught:
        run(name)
    assert str(caught.value).isprintable()


def test_a_name_of_two_lines_is_one_line_of_the_report(folder: Path):
    picture(folder / "a\nb" / "a.png", "black")
    picture(folder / "ink" / "a.png", "black")
    assert "left out: a\\nb: a LoRA could not be saved" in run()[2]


def test_no_link_leads_out(folder: Path, tmp_path: Path):
    picture(tmp_path / "outside" / "a.png", "black")
    (folder / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    (folder / "ink").mkdir()
    (folder / "ink" / "a.png").symlink_to(tmp_path / "outside" / "a.png")
    with pytest.raises(I2LError, match="link: it is a link that leads out of the input folder"):
        run()


def test_a_folder_without_a_style_says_what_is_expected(folder: Path):
    with pytest.raises(I2LError, match="expected a sub-folder of pictures for each style"):
        run()


def test_a_name_that_no_file_can_have_is_left_out(folder: Path):
    picture(folder / "CON" / "a.png", "black")
    picture(folder / "ink" / "a.png", "black")
    _, names, report = run()
    assert names == ["ink"]
    assert "left out: CON: a LoRA could not be saved under this name; rename the folder" in report


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: picture(folder / "ink" / "b.png", "red"),
        lambda folder: (folder / "ink" / "a.png").unlink(),
        lambda folder: picture(folder / "ink" / "a.png", "red", size=(64, 64)),
    ],
)
def test_changes_in_the_folder_are_noticed(folder: Path, change: Callable[[Path], None]):
    from i2l.nodes.folder import ImagesFromFolder

    picture(folder / "ink" / "a.png", "black")
    before = ImagesFromFolder.fingerprint_inputs("styles", 8)
    assert ImagesFromFolder.fingerprint_inputs("styles", 8) == before
    change(folder)
    assert ImagesFromFolder.fingerprint_inputs("styles", 8) != before


def test_cancel_is_honoured_between_pictures(folder: Path):
    import comfy.model_management as mm

    picture(folder / "ink" / "a.png", "black")
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        run()
