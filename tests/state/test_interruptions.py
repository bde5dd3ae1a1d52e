"""benchmarks/interruptions.py in miniature: commands that are stopped at random moments while others predict."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "interruptions.py"
COUNT, READERS = 10, 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_whatever_is_interrupted_the_state_is_one_of_its_versions() -> None:
    seed = random.SystemRandom().randrange(10**6)  # other moments in every run; a failure tells its seed
    options = ["--count", str(COUNT), "--readers", str(READERS), "--seed", str(seed), "--json"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    ways = ("SIGKILL", "SIGTERM", "full disk", "read-only")
    assert sum(facts["by"].get(way, 0) for way in ways) == COUNT
    assert facts["answers"] >= READERS
