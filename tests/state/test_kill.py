"""Writers that are killed, and writers that meet: real processes, real SIGKILL."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from sapwood.errors import StateBusy
from sapwood.state import State

from .helpers import committed_files, start, text_commit, tree

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")

# Commits in a loop (every fourth time an undo) and tells what it is about to do and what is done.
WRITER = """
import os, sys
from sapwood.state import State
state = State.open(sys.argv[1])
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print("ready", flush=True)
while True:
    number = state.version.number + 1
    os.write(log, f"begin {number}\\n".encode())
    if number % 4 == 0:
        state.undo()
    else:
        folder = state.free_task_folder(number, "task")
        kept = list(state.version.record["files"])[-3:]
        files = {f"{folder}/{part}.jsonl": f"{number} {part}\\n" * 2000 for part in "ab"}
        state.commit({"tasks": number, "files": kept}, files, "x")
    os.write(log, f"done {state.version.id}\\n".encode())
"""

READER = """
import os, sys
from sapwood.state import State
count = last = 0
while not os.path.exists(sys.argv[2]):
    state = State.open(sys.argv[1])
    for name in state.version.record["files"]:
        text = state.text(name)
        assert len(set(text.splitlines())) == 1, name
    assert state.version.number >= last, (state.version.number, last)
    last = state.version.number
    if count % 20 == 0:
        assert state.versions()[-1].number >= last
    count += 1
print(count)
"""


def test_a_writer_killed_at_random_moments_leaves_the_version_before_or_after(tmp_path: Path) -> None:
    root, log, stop = tmp_path / "model", tmp_path / "log", tmp_path / "stop"
    State.create(root, {"tasks": 0})
    # Other moments in every run; a failure tells its seed.
    seed = random.SystemRandom().randrange(10**6)
    delays = random.Random(seed)
    reader = start(READER, root, stop)
    kills = caught_inside = 0
    try:
        before = State.open(root).version
        while kills < 25:
            log.unlink(missing_ok=True)
            writer = start(WRITER, root, log)
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n", writer.communicate()[1]
            time.sleep(delays.uniform(0, 0.06))
            writer.kill()
            writer.communicate()
            kills += 1
            told = log.read_text().splitlines() if log.exists() else []
            done = [line.split()[1] for line in told if line.startswith("done")]
            last_done = done[-1] if done else before.id
            state = State.open(root)
            if told and told[-1].startswith("begin"):
                caught_inside += 1
                assert last_done in (state.version.id, state.version.record["previous"]), f"seed {seed}"
            else:
                assert state.version.id == last_done, f"seed {seed}"
            for name in state.version.record["files"]:
                state.text(name)
            before = state.version
    finally:
        stop.touch()
        output, errors = reader.communicate(timeout=20)
    assert reader.returncode == 0, errors
    assert int(output) > 20
    assert caught_inside > 5
    state = State.open(root)
    assert [version.number for version in state.versions()] == list(range(1, before.number + 1))
    with state.writer():
        assert set(tree(root)) - {"lock-owner.json"} == committed_files(state)


EVERY_STEP = """
import json, sys
from pathlib import Path
from every_step import check_nothing_left_over, killed_before_every_step
from sapwood.state import State
base, work, action = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def act():
    if action == "create":
        State.create(work, {"tasks": []})
    elif action == "undo":
        State.open(work).undo()
    else:
        state = State.open(work)
        files = {"tasks/0002-b/x": "x", "tasks/0002-b/y": "y"}
        state.commit({"files": list(state.version.record["files"])}, files, "b")
results = []
for step in killed_before_every_step(base, work, act):
    if action == "create" and not State.exists(work):
        results.append("none")
        State.create(work, {"tasks": []})
    state = State.open(work)
    [state.text(name) for name in state.version.record["files"]]
    results.append(state.version.number)
    kept = list(state.version.record["files"])
    state.commit({"files": kept}, {state.free_task_folder(2, "b") + "/z": "z"}, "after")
    check_nothing_left_over(state)
    assert [version.number for version in state.versions()] == list(range(1, state.version.number + 1)), step
print(json.dumps(results))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("action", "outcomes", "steps"), [("commit", {2, 3}, 15), ("undo", {2, 3}, 10), ("create", {"none", 1}, 8)]
)
def test_a_writer_killed_before_every_step(tmp_path: Path, action: str, outcomes: set[object], steps: int) -> None:
    base = tmp_path / "base"
    if action != "create":
        text_commit(State.create(base, {"tasks": []}))
    process = start(EVERY_STEP, base, tmp_path / "work", action)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    results = json.loads(output)
    assert set(results) == outcomes
    assert len(results) >= steps
    numbers = [number for number in results if number != "none"]
    assert numbers == sorted(numbers), "before the commit point the old version, from it on the new one"


HOLDER = """
import os, sys, time
from sapwood.state import State
with State.open(sys.argv[1]).writer():
    if len(sys.argv) > 2:
        child = os.fork()  # as a data loader's worker does
        if not child:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
    print("holding", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


def test_a_second_writer_is_told_who_writes_and_goes_on_when_the_first_is_done(tmp_path: Path) -> None:
    state = State.create(tmp_path / "model", {"tasks": []})
    holder = start(HOLDER, state.path)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "holding\n"
    before = tree(state.path)
    with pytest.raises(StateBusy, match=rf"process {holder.pid} on {socket.gethostname()} since 20\d\d-.*wait until"):
        text_commit(state)
    assert tree(state.path) == before
    assert State.open(state.path).version == state.version, "reading needs no lock"
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "released\n"
    text_commit(state)
    holder.communicate()
    assert not (state.path / "lock-owner.json").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_killed_writer_holds_nothing_even_if_its_workers_live_on(tmp_path: Path) -> None:
    state = State.create(tmp_path / "model", {"tasks": []})
    holder = start(HOLDER, state.path, "with a worker")
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        assert holder.stdout.readline() == "holding\n"
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # lives
        text_commit(state)
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.communicate()
    assert not (state.path / "lock-owner.json").exists()


def test_two_objects_in_one_process_are_two_writers(tmp_path: Path) -> None:
    one = State.create(tmp_path / "model", {"tasks": []})
    two = State.open(one.path)
    with one.writer(), one.writer():
        text_commit(one)
        with pytest.raises(StateBusy, match=f"process {os.getpid()} "):
            text_commit(two)
    two.refresh()
    text_commit(two)


def test_leftovers_of_killed_writers_go_with_the_next_and_training_stays(tmp_path: Path) -> None:
    state = State.create(tmp_path / "model", {"tasks": []})
    text_commit(state)
    state.training.begin({"task": "fish"})
    whole = tree(state.path)
    orphan = f"versions/v{state.version.number + 1:04d}-0badf00d.json"
    for name in (
        ".aside-1",
        "versions/.aside-2",
        "tasks/0002-fish/.aside-3",
        "tasks/0002-fish/head.safetensors",
        orphan,
    ):
        (state.path / name).parent.mkdir(exist_ok=True)
        (state.path / name).write_bytes(b"half")
    (state.path / "notes.txt").write_text("the user's own")
    assert State.open(state.path).versions() == state.versions()
    with State.open(state.path).writer():
        pass
    assert tree(state.path) == whole | {"notes.txt": b"the user's own"}
    assert not (state.path / "tasks" / "0002-fish").exists()


def test_a_create_that_was_killed_can_be_repeated(tmp_path: Path) -> None:
    root = tmp_path / "model"
    first = State.create(root, {"tasks": ["killed"]}).version
    (root / "sapwood.json").unlink()
    (root / ".aside-0").write_bytes(b"{")
    state = State.create(root, {"tasks": []})
    assert set(tree(root)) == committed_files(state)
    assert state.version.id != first.id
    shutil.rmtree(root)
