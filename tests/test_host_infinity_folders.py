"""The lists of Infinity's files: what is offered, and what a name finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from i2l.i2l_core.errors import I2LError


def test_files_of_weights_are_listed_and_found(host, tmp_path: Path, monkeypatch):
    import folder_paths

    from i2l.i2l_core.host.infinity.folders import MODELS, file_names, file_path, files_fingerprint

    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, MODELS, ([str(tmp_path)], folder_paths.supported_pt_extensions)
    )
    folder_paths.filename_list_cache.pop(MODELS, None)
    (tmp_path / "8b").mkdir()
    shards = [f"8b/x-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in ("infinity_2b_reg.pth", "notes.txt", "x-1-of-99999.safetensors", *shards):
        (tmp_path / name).write_bytes(b"")
    assert set(file_names(MODELS)) == {"infinity_2b_reg.pth", shards[0]}
    assert file_path(MODELS, shards[0].replace("/", "\\")) == tmp_path / shards[0]
    for name in (shards[1], "../infinity_2b_reg.pth", "notes.txt", ""):
        with pytest.raises(I2LError, match="choose one from the list, or put it there") as caught:
            file_path(MODELS, name)
        assert str(tmp_path) in str(caught.value)
    second, found = tmp_path / shards[1], [files_fingerprint(MODELS, shards[0])]
    for content in (b"other", b"another"):
        second.write_bytes(content)
        found.append(files_fingerprint(MODELS, shards[0]))
    second.unlink()
    found.append(files_fingerprint(MODELS, shards[0]))
    assert len(set(found)) == len(found)
    folder_paths.filename_list_cache.pop(MODELS, None)
