"""The command line in two processes: what it says, what it refuses, and what a killed one leaves."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from meeting import Meeting

from sapwood.cli import main
from sapwood.learner import Learner
from sapwood.state import State

from .conftest import Start

OPTIONS = ("--backbone", "random:dinov2-tiny", "--image-size", "28", "--method", "seq-lora", "--precision", "fp32")


def children(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of what a launcher has started."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(each) for each in found.read_text().split()]


def command(*given: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command line in this process."""
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        try:
            main(given)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, output.getvalue(), errors.getvalue()


def faults(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if "error: " in line]


def test_one_speaks_for_both(
    meeting: Callable[[], Meeting], picture_folder: Callable[..., Path], decoded: list[str], tmp_path: Path
) -> None:
    """And one decodes for both."""
    state, data = tmp_path / "model", picture_folder(["ant", "bee"], 4)
    given = ("learn", str(state), str(data), *OPTIONS, "--epochs", "1", "--batch-size", "2", "--json")
    (*first, reads), (*second, others) = meeting().values(2, lambda rank: [*command(*given), len(decoded)])
    assert first[0] == second[0] == 0, first
    assert (reads, others) == (8, 0)
    assert json.loads(first[1])["classes"] == ["ant", "bee"]
    assert first[2].count("new state") == 1
    assert second[1:] == ["", ""]
    assert [version.number for version in State.open(state).versions()] == [1, 2]


def test_refusals(
    meeting: Callable[[], Meeting],
    picture_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, data = str(tmp_path / "model"), str(picture_folder(["ant", "bee"], 4))

    given = ("learn", state, data, *OPTIONS, "--batch-size", "1")
    first, second = meeting().values(2, lambda rank: command(*given))
    assert first[0] == second[0] == 2
    assert faults(first[2]) == [
        "error: 2 processes share batches of 1 pictures, so that some have none; start at most 1, or raise --batch-size"
    ]
    assert second[1:] == ["", ""]
    assert not Path(state).exists()
    for rank, told in (("0", ["error: several processes can only learn together; start `show` once"]), ("1", [])):
        for name, value in (("WORLD_SIZE", "2"), ("RANK", rank)):
            monkeypatch.setenv(name, value)
        code, output, errors = command("show", state)
        assert (code, output, faults(errors)) == (2, "", told)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for child processes in /proc")
def test_a_killed_process_ends_the_run_and_one_goes_on(
    start: Start, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    state, data = tmp_path / "model", picture_folder(["ant", "bee"], 8)
    more = ("--epochs", "40", "--batch-size", "4", "--set", "training.checkpoint_seconds=0.2")
    given = ("learn", str(state), str(data), *OPTIONS, *more)
    process = start(2, "-m", "sapwood", *given)
    deadline = time.monotonic() + 90
    while not list(state.glob("training/checkpoint-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(children(process)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    opened = State.open(state)
    assert opened.version.number == 1, "what was committed before"
    found = opened.training.load()
    assert found is not None
    assert 0 < found[1]["position"]["step"] < 160
    code, _, errors = command(*given)
    assert code == 0, errors
    assert Learner.open(state, device="cpu").classes_ == ("ant", "bee")
