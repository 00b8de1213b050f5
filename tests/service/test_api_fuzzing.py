"""Whatever the API's description allows is answered as it says, and whatever it forbids refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).parent / "fuzzing" / "schemathesis.toml"
MOST_S = 100


@pytest.mark.slow
def test_the_api_is_as_it_describes_itself(address: str, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
        *("run", f"{address}/openapi.json", "--phases", "coverage,fuzzing"),
        *("--workers", "1", "--max-examples", "2", "--generation-deterministic", "--no-color"),
    ]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={
            **os.environ,
            "ADDRESS": address,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        },
        capture_output=True,
        text=True,
        timeout=MOST_S,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 13" in done.stdout
