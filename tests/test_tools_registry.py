"""What the ComfyUI registry and ComfyUI itself read of the pack: pyproject.toml, requirements.txt, the icon."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import pytest
from copied_pack import imported_as
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from i2l.tools.host import ROOT, find_host
from i2l.tools.setup import HOST_VERSION

ICON = ROOT / "docs" / "images" / "icon.svg"


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for each in text.splitlines() if (line := each.split("#")[0].strip())]


@pytest.fixture(scope="module")
def config(host) -> Any:
    """As ComfyUI reads it."""
    from comfy_config.config_parser import extract_node_configuration

    return extract_node_configuration(str(ROOT))


def test_the_name_is_one_that_the_registry_takes(config):
    assert re.fullmatch(r"[a-z]([._-]?[a-z0-9])*", config.project.name)
    assert len(config.project.name) < 100
    assert "comfyui" not in config.project.name
    assert config.tool_comfy.publisher_id
    assert config.tool_comfy.display_name == "ComfyUI-i2L"
    assert 20 < len(config.project.description) < 200
    assert (ROOT / config.project.license.file).is_file()


def test_it_says_where_it_runs(config):
    assert config.project.supported_os == ["OS Independent"]
    assert HOST_VERSION in SpecifierSet(config.project.supported_comfyui_version)
    for version in ("3.10", "3.11", "3.12", "3.13"):
        assert version in SpecifierSet(config.project.requires_python)
    assert not config.tool_comfy.web  # WEB_DIRECTORY says it; both would register it twice


def test_the_version_is_the_newest_of_the_changelog(config):
    versions = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert config.project.version == versions[0]


def test_requirements_do_not_fight_those_of_comfyui(config):
    """Nothing that ComfyUI brings, and no upper limit: pip would change what others need."""
    ours = requirements((ROOT / "requirements.txt").read_text("utf-8"))
    assert [str(each) for each in ours] == [str(Requirement(each)) for each in config.project.dependencies]
    theirs = {each.name for each in requirements((find_host().path / "requirements.txt").read_text("utf-8"))}
    assert len(theirs) > 20
    for each in ours:
        assert each.name not in theirs
        assert {specifier.operator for specifier in each.specifier} <= {">="}
        assert each.url is None


def test_the_icon_is_square_and_only_draws(config):
    root = xml.parse(ICON).getroot()
    assert root.get("viewBox") == "0 0 400 400"
    assert root.get("width") == root.get("height") == "400"
    assert {part.tag.rpartition("}")[2] for part in root.iter()} <= {
        *("svg", "title", "defs", "linearGradient", "stop", "clipPath"),
        *("g", "rect", "circle", "path"),
    }
    address = config.tool_comfy.icon
    assert not address or re.fullmatch(rf"https://\S+/{ICON.relative_to(ROOT).as_posix()}", address)


def test_what_an_artist_installs_runs_by_itself(host, tmp_path: Path):
    """Without the files of .comfyignore: every node has a schema, and the demo loads."""
    git = ("git", "-C", str(ROOT), "ls-files")
    ignored = set(
        subprocess.check_output([*git, "-ci", "--exclude-from=.comfyignore"], text=True).splitlines()
    )
    kept = [path for path in subprocess.check_output(git, text=True).splitlines() if path not in ignored]
    assert {"tests", "bench", "tools"} <= {path.split("/")[0] for path in ignored}
    assert not {"nodes", "workflows", "web", "locales"} & {path.split("/")[0] for path in ignored}
    for path in kept:
        if (ROOT / path).is_file():  # not one that is deleted and not committed yet
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, tmp_path / path)
    with imported_as("i2l_installed", tmp_path) as module:
        for node in module("nodes").NODES:
            assert node.GET_SCHEMA().node_id
        outputs = module("nodes.demo").LoadI2LDemo.execute()
        assert len(outputs.args) == 4
        outputs = module("nodes.template_demo").LoadI2LTemplateDemo.execute()
        assert len(outputs.args) == 6
