"""Disks that are full or read-only: small real file systems where mounting is permitted, real limits elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sapwood.errors import SapwoodError, UsageError
from sapwood.state import State

from .helpers import start, text_commit, tree


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("a small file system is mounted on Linux only")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("content", ["x" * 400_000, {"w": torch.zeros(100_000)}], ids=["text", "tensors"])
def test_a_full_disk_leaves_the_state_unchanged(small_disk: Path, content: str | dict[str, torch.Tensor]) -> None:
    state = State.create(small_disk / "model", {"tasks": []})
    text_commit(state)
    before = tree(state.path)
    with pytest.raises(
        SapwoodError, match=r"no space left on the disk of .*model; the state is unchanged: free"
    ) as caught:
        state.commit({"tasks": ["big"]}, {"tasks/0002-small/a.jsonl": "a", "tasks/0002-small/b.bin": content}, "big")
    assert caught.value.exit_code == 1
    assert not isinstance(caught.value, UsageError)
    assert tree(state.path) == before
    assert State.open(state.path).version == state.version
    text_commit(state, "small enough")
    assert State.open(state.path).version.number == 3


def test_a_disk_full_to_the_last_byte_still_reads_and_recovers(small_disk: Path) -> None:
    state = State.create(small_disk / "model", {"tasks": []})
    kept = text_commit(state)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    before = tree(state.path)
    for _ in range(2):
        with pytest.raises(SapwoodError, match="the state is unchanged"):
            text_commit(state)
        with pytest.raises(SapwoodError, match="the state is unchanged"):
            state.undo()
        assert tree(state.path) == before
    assert State.open(state.path).text(kept)
    with pytest.raises(SapwoodError, match="no space left"):
        State.create(small_disk / "other", {})
    filler.unlink()
    text_commit(state)
    State.create(small_disk / "other", {})


def test_a_checkpoint_that_finds_no_space_leaves_the_one_before(small_disk: Path) -> None:
    training = State.create(small_disk / "model", {}).training
    training.begin({"task": "birds"})
    training.save({"w": torch.ones(10)}, {"step": 1})
    with pytest.raises(SapwoodError, match="no space left"):
        training.save({"w": torch.ones(100_000)}, {"step": 2})
    loaded = training.load()
    assert loaded is not None
    assert loaded[1] == {"step": 1}
    assert len(list(training.path.iterdir())) == 2


LIMITED = """
import resource, signal, sys
from sapwood.errors import SapwoodError, UsageError
from sapwood.state import State
state = State.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    state.commit({}, {"tasks/0001-a/small.jsonl": "a", "tasks/0001-a/log.jsonl": "x" * 200_000}, "big")
except SapwoodError as error:
    assert not isinstance(error, UsageError)
    print(error)
"""


def test_a_file_size_limit_leaves_the_state_unchanged(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="this system has no limits on file sizes")
    state = State.create(tmp_path / "model", {"tasks": []})
    before = tree(state.path)
    process = start(LIMITED, state.path)
    output, errors = process.communicate(timeout=20)
    assert "cannot be written (File too large); the state is unchanged" in output, errors
    assert tree(state.path) == before


@pytest.fixture
def read_only(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A state with one task in a place that cannot be written."""
    if os.name != "posix":
        pytest.skip("folders are made read-only on POSIX only")
    # Permissions do not stop the administrator: there a file system is mounted read-only.
    as_root = os.geteuid() == 0
    folder = request.getfixturevalue("small_disk") if as_root else tmp_path
    state = State.create(folder / "model", {"tasks": []})
    text_commit(state)
    folders = [state.path, *(path for path in state.path.rglob("*") if path.is_dir())]
    if as_root:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    else:
        for path in folders:
            path.chmod(0o555)
    yield state.path
    if not as_root:
        for path in folders:
            path.chmod(0o755)


def test_a_read_only_folder_is_read_and_says_that_it_cannot_be_written(read_only: Path) -> None:
    before = tree(read_only)
    state = State.open(read_only)
    assert [state.text(name) for name in state.version.record["files"]] == ['{"task": "birds"}\n']
    assert len(state.versions()) == 2
    assert state.training.plan() is None
    assert state.training.load() is None
    for attempt in (state.undo, lambda: text_commit(state), lambda: state.training.begin({})):
        with pytest.raises(
            SapwoodError, match=r"cannot be written .*the state is unchanged: make the folder writable"
        ) as caught:
            attempt()
        assert caught.value.exit_code == 1
    assert tree(read_only) == before
