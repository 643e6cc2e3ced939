"""The browser for the tests of the front end: one that is there, or Debian's chromium.

Playwright's own downloads are not used: what a distribution ships is what CI can install and what can be repeated.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PACKAGES = ("chromium", "fonts-wqy-microhei")  # the font: Chinese in screenshots
MISSING = (
    "No chromium was found, which the browser tests need: install it (Debian: `apt-get install chromium`), or set "
    f"{VARIABLE} to its path. `make check` does without."
)


def find_chromium() -> Path | None:
    """The browser that the environment names, or the first one on PATH."""
    named = os.environ.get(VARIABLE, "").strip()
    found = next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
    return Path(found) if found else None


def install_chromium() -> Path | None:
    """The browser, installed by apt-get where that is possible without asking for a password."""
    found = find_chromium()
    command = _apt_get()
    if found or command is None or os.environ.get(VARIABLE):
        return found
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run([*command, "-qq", *arguments], env=environment, check=False)
        if done.returncode != 0:
            break
    return find_chromium()


def _apt_get() -> Sequence[str] | None:
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return ["apt-get"]
    sudo = shutil.which("sudo")
    may = sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0
    return [sudo, "-n", "apt-get"] if sudo and may else None
