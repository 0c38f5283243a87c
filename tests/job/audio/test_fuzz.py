"""Files damaged at random: each is decoded or refused, and none takes the process with it.

``FUZZ_FILES=5000 make test PYTEST_ARGS=tests/job/audio/test_fuzz.py`` tries more than the usual number.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from speech import Clip

SUPPORT = Path(__file__).resolve().parents[2] / "support"


@pytest.mark.slow
def test_damaged_files_are_decoded_or_refused(librivox: list[Clip]) -> None:
    count = int(os.environ.get("FUZZ_FILES", "300"))
    first, failures = 0, []
    while first < count and len(failures) < 10:
        program = [sys.executable, "-X", "faulthandler", SUPPORT / "fuzz_audio.py", librivox[1].path]
        done = subprocess.run(
            [*map(str, program), str(first), str(count)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            check=False,
            timeout=120 + count,
        )
        if done.returncode == 0:
            break
        tried = done.stdout.splitlines()
        number = int(tried[-1].split()[0]) if tried else first
        failures.append(f"{number}: status {done.returncode}\n{done.stderr[-1500:]}")
        first = number + 1
    assert not failures, "\n".join(failures)
