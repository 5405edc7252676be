"""The benchmark runs, and counts its rows."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parent / "benchmarks" / "relay.py"


def test_smallest_round(tmp_path: Path) -> None:
    """One small round finds a row for each call and prints bare, ours and their ratio."""
    file = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARK), "--rounds", "1", "--calls", "8", "--streams", "1"]
    done = subprocess.run(
        [*command, "--server", "uvicorn", "--json", str(file)], capture_output=True, timeout=90, check=False
    )
    said = done.stdout.decode()
    assert done.returncode == 0, said + done.stderr.decode()
    found = json.loads(file.read_text("utf-8"))
    (server,) = found["servers"].values()
    assert server["rows_found"] == server["rows_expected"] == 20 + 1 + 8 + 32 + 1 + 32
    assert {"CPU µs per plain call, 1 connection", "CPU µs per chunk, 32 connections"} <= server["cost"].keys()
    for name, each in server["cost"].items():
        assert name in said
        assert each.keys() == {"bare", "ours"}
    assert f"rows expected {server['rows_expected']}, rows found {server['rows_found']}" in said
    assert all(name in said and each > 0 for name, each in found["pieces"].items())
