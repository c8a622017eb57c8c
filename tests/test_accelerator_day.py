"""accelerator_day.py: what it stores, where it resumes, and what its tables say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks/measurements"))

from accelerator_day import Rows, report  # noqa: E402


def test_nothing_is_measured_twice_and_a_cut_line_is(tmp_path):
    rows = Rows(tmp_path, "reverse")
    rows.measure("a", lambda: {"flops": 1})
    rows.measure("b", lambda: {"flops": 2})
    path = tmp_path / "reverse.jsonl"
    path.write_text(path.read_text()[:-3])  # the time limit ended while the last line was written
    again = Rows(tmp_path, "reverse")
    again.measure("a", lambda: pytest.fail("measured again"))
    assert again.known == {"a"}
    again.measure("b", lambda: {"flops": 3})
    assert [row["flops"] for row in Rows(tmp_path, "reverse").read()] == [1, 3]


def test_too_little_memory_is_a_result_and_a_fault_is_none(tmp_path):
    def fails(words):
        raise RuntimeError(words)

    rows = Rows(tmp_path, "reverse")
    rows.measure("large", lambda: fails("RESOURCE_EXHAUSTED: 900 GiB"))
    with pytest.raises(RuntimeError, match="another"):
        rows.measure("broken", lambda: fails("another"))
    assert rows.read() == [{"key": "large", "failed": "out of memory"}]


def test_tables_hold_ratios_and_shares(tmp_path):
    Rows(tmp_path, "machine").write(key="matmul bfloat16", flops_per_second=4e12)
    Rows(tmp_path, "reverse").write(
        key="x, 1 s x 8, bfloat16",
        samples=22050,
        flops=1e12,
        median_seconds={"ours": 0.5, "eager": 1.25},
    )
    header, _, cells = report(tmp_path).split("## reverse")[1].strip().splitlines()[2:]
    row = dict(zip(header.split(" | "), cells.split(" | "), strict=True))
    assert row["samples/s"] == "44,100" and row["share of the matmul peak"] == "50%"
    assert "2.50" in cells


@pytest.mark.slow
def test_a_rehearsal_goes_on_where_it_stopped(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks/measurements/accelerator_day.py"),
        "-o",
        str(tmp_path),
    ]
    command += ["--scale", "tiny", "--stages", "machine", "invertibility"]
    found = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        found.append((tmp_path / "invertibility.jsonl").read_text())
    assert found[0] == found[1] and len(found[0].splitlines()) == 6
    for row in map(json.loads, found[0].splitlines()):
        assert row["round_trip"] < 1e-3
    assert (tmp_path / "report.md").read_text().count("invertibility |") >= 2
