"""Pages that say what the code says are written by it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_page_has_drifted_from_the_code() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "write.py"), "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
