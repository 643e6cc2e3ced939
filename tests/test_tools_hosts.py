"""The table of hosts: counted from reports, written between its marks, and the same versions everywhere."""

from __future__ import annotations

import json
from pathlib import Path

from i2l.i2l_core.host.symbols import OLDEST
from i2l.tools import hosts
from i2l.tools.host import ROOT

REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase name="test_a" /><testcase name="test_b[x]" /><testcase name="test_c"><skipped /></testcase>
<testcase name="test_d"><failure message="no">text</failure></testcase>
<testcase name="test_e" /><testcase name="test_e"><error message="teardown" /></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted(tmp_path: Path):
    report, file = tmp_path / "report.xml", Path("tests/test_server_run.py")
    report.write_text(REPORT, "utf-8")
    assert hosts.counted(report, file) == (3, ["test_d", "test_e"])
    assert hosts.counted(tmp_path / "none.xml", file) == (0, ["test_server_run"])


def test_the_table_is_written_between_its_marks_and_again():
    text = f"# Title\n\n{hosts.BEGIN}| old |\n{hosts.END}\nRest.\n"
    outcome = {
        "comfyui": "0.24.0",
        "front_end": "1.44.19",
        "tests": "server",
        "passed": 3,
        "failed": ["test_d"],
    }
    found = hosts.with_table(text, [outcome])
    assert "| 0.24.0 | 1.44.19 | server | 3 of 4 | `test_d` |" in found
    assert found.startswith("# Title\n\n")
    assert found.endswith(f"{hosts.END}\nRest.\n")
    assert "| old |" not in found
    assert hosts.with_table(found, [outcome]) == found


def test_readme_shows_the_outcomes_that_are_kept():
    outcomes = json.loads(hosts.RESULTS.read_text("utf-8"))
    text = (ROOT / "README.md").read_text("utf-8")
    assert hosts.with_table(text, outcomes) == text


def test_the_oldest_host_is_the_one_that_the_pack_asks_for():
    assert ".".join(map(str, OLDEST)) == hosts.OLDEST
