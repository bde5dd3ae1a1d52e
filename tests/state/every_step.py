"""For child processes: an action on a state, killed right before the n-th step on the disk, for every n."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock  # noqa: F401  (before the fork, so that its import is no step)

from sapwood.state import State

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def killed_before_every_step(base: Path, work: Path, action: Callable[[], object]) -> Iterator[int]:
    """Give the number of each kill once ``action`` has hit it in a fresh copy of ``base``; at last it runs through."""
    step, finished = 0, False
    while not finished:
        step += 1
        shutil.rmtree(work, ignore_errors=True)
        if base.exists():
            shutil.copytree(base, work)
        child = os.fork()
        if not child:
            _kill_at(step, work)
            action()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        finished = status == 0
        assert finished or os.WTERMSIG(status) == signal.SIGKILL, status
        yield step


def _kill_at(step: int, work: Path) -> None:
    steps = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in _EVENTS and str(work) in str(arguments[0]):
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def check_nothing_left_over(state: State) -> None:
    """The folder holds the pointer, its versions and their files, and nothing else but the lock."""
    named = {name for version in state.versions() for name in version.record["files"]}
    there = {path.relative_to(state.path).as_posix() for path in state.path.rglob("*") if path.is_file()}
    records = {f"versions/{version.id}.json" for version in state.versions()}
    assert there - {"lock"} == named | records | {"sapwood.json"}, there
