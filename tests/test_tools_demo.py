from __future__ import annotations

import pytest

from i2l.tools.demo import next_free_folder, reference_sets
from i2l.tools.graph_to_api import GraphError


def test_pictures_are_grouped_by_the_name_before_their_number(tmp_path):
    for name in ("woodcut_1.png", "woodcut_2.png", "blue-print-01.png", "plain.png", "readme.txt"):
        (tmp_path / name).touch()
    sets = reference_sets(tmp_path)
    assert {style: [path.name for path in paths] for style, paths in sets.items()} == {
        "blue-print": ["blue-print-01.png"],
        "woodcut": ["woodcut_1.png", "woodcut_2.png"],
    }
    assert list(reference_sets(tmp_path, ["woodcut"])) == ["woodcut"]


def test_pictures_without_numbers_are_styles_where_none_has_one(tmp_path):
    for name in ("ink.png", "oil.png"):
        (tmp_path / name).touch()
    assert list(reference_sets(tmp_path)) == ["ink", "oil"]


def test_unknown_style_and_empty_folder_are_named(tmp_path):
    with pytest.raises(GraphError, match="No reference pictures"):
        reference_sets(tmp_path)
    (tmp_path / "chalk_1.png").touch()
    with pytest.raises(GraphError, match=r"No style 'neon' .*: there are chalk"):
        reference_sets(tmp_path, ["neon"])


def test_no_earlier_run_is_written_over(tmp_path):
    first = next_free_folder(tmp_path / "out")
    (first / "a.png").touch()
    assert next_free_folder(tmp_path / "out").name == "002"
    assert (first / "a.png").exists()
