from __future__ import annotations

import sys
from pathlib import Path

import pytest

from i2l.tools.host import Host, HostError, find_host

ROOT = Path(__file__).resolve().parent.parent


def test_root_is_not_on_sys_path():
    assert ROOT not in [Path(entry or ".").resolve() for entry in sys.path]


def test_host_computes_in_float32_on_the_cpu(host):
    import comfy.model_management as mm
    import folder_paths
    import torch

    assert mm.get_torch_device() == torch.device("cpu")
    assert mm.unet_dtype() == torch.float32
    assert not Path(folder_paths.get_output_directory()).is_relative_to(ROOT)


def test_path_without_comfyui_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"main\.py is missing"):
        find_host()


def test_venv_in_the_installation_is_used(tmp_path, monkeypatch):
    for name in ("main.py", "folder_paths.py", "comfy", "venv/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    assert find_host() == Host(tmp_path, tmp_path / "venv/bin/python", own=False)
