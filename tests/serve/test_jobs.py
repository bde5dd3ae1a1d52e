"""The queue and its worker: real processes that are killed, stopped and left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil
import pytest

from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.progress import Progress
from sapwood.serve import worker
from sapwood.serve.jobs import Busy, Job, Jobs, QueueFull
from sapwood.serve.process import started
from sapwood.serve.shelf import Shelf
from sapwood.serve.wording import restart_helps
from sapwood.serve.worker import STOPPED, Order
from sapwood.state import State
from sapwood.state.training import base_of

from .samples import encoded, pixels

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals end the processes here")

TRAINING = {"lr": 5e-4, "epochs": 3, "batch_size": 4, "checkpoint_seconds": 1e-3, "augment": False}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state that has learned two classes by gradient."""
    path = tmp_path_factory.mktemp("begun") / "state"
    learner = Learner.create(path, backbone="random:dinov2-tiny", method="seq-lora", image_size=28)
    pairs = [(pixels(name, index), name) for name in ("ant", "bee") for index in range(4)]
    learner.learn(pairs, training=TRAINING)
    return path


@pytest.fixture
def state(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "state"))


@pytest.fixture
def order(state: Path, tmp_path: Path) -> Callable[..., Order]:
    """``order("cat")``: eight pictures of a class in a folder of their own."""

    def make(label: str, **options: Any) -> Order:
        folder = tmp_path / f"upload-{label}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for index in range(8):
            (folder / f"{index:06d}").write_bytes(encoded(pixels(label, index)))
        pictures = [(f"{label} {index}.png", f"{index:06d}") for index in range(8)]
        return Order(str(state), str(folder), pictures, label, **options)

    return make


def wait(jobs: Jobs, job: dict[str, Any], until: Callable[[dict[str, Any]], bool], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = jobs.get(job["job"])
        assert found is not None
        if until(found[1]):
            return found[1]
        time.sleep(0.005)
    raise AssertionError(found)


def over(job: dict[str, Any]) -> bool:
    return job["status"] in ("done", "failed")


def workers() -> list[psutil.Process]:
    found = [child for child in psutil.Process().children() if "sapwood.serve.worker" in " ".join(child.cmdline())]
    return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]


def test_a_killed_round_leaves_the_state_and_goes_on_when_it_is_asked_for_again(
    state: Path, order: Callable[..., Order], tmp_path: Path
) -> None:
    before = State.open(state).version.id
    jobs = Jobs(state, 4)
    long = {"epochs": 40, "checkpoint_seconds": 0.05}
    first = jobs.submit(order("cat", training=long), "cat")
    wait(jobs, first, lambda job: job["progress"]["what"] == "training" and job["progress"]["done"] > 3)
    with pytest.raises(Busy, match="learning"), jobs.quiet():
        pass
    (process,) = workers()
    process.send_signal(signal.SIGKILL)
    killed = wait(jobs, first, over)
    assert killed["status"] == "failed"
    assert "SIGKILL" in killed["error"]
    assert "as it was" in killed["error"]
    assert "goes on from its last checkpoint" in killed["error"]
    assert killed["version"] is None
    assert State.open(state).version.id == before
    assert Learner.open(state).predict([pixels("ant", 9)])[0].label in ("ant", "bee")
    for _ in range(100):
        if not list(tmp_path.glob("upload-*")):
            break
        time.sleep(0.02)
    assert not list(tmp_path.glob("upload-*")), "uploads are deleted, whatever became of the job"

    aside = Path(shutil.copytree(state, tmp_path / "aside"))
    asked = order("ground", training={"epochs": 1})
    asked = replace(asked, state=str(aside))
    with pytest.raises(ConfigError, match="half learned") as refused:
        worker.learn(asked, Progress())
    assert restart_helps(str(refused.value))
    others = worker.learn(replace(asked, replace=True), Progress())
    assert others.classes_ == ("ant", "bee", "ground"), (
        "of a round that the server's own worker began, another may follow"
    )

    class From(Progress):
        done = -1

        def start(self, what: str, total: int, done: int = 0) -> None:
            if what == "training":
                self.done = done

    again = From()
    assert worker.learn(order("cat", training=long, replace=True), again).classes_ == ("ant", "bee", "cat")
    assert again.done > 0, "it goes on where the killed one was"
    jobs.close()
    assert not workers()


def test_a_worker_that_died_after_its_commit_has_learned(state: Path, order: Callable[..., Order]) -> None:
    before = State.open(state).version
    asked = order("cat")
    now = worker.learn(asked, Progress()).state.version
    jobs, job = Jobs(state, 1), Job("0", asked, "cat", "")
    jobs._conclude(job, before, {}, -9)
    assert (job.status, job.version, job.error) == ("done", now.id, None)
    jobs._conclude(job, now, {"event": "failed", "error": f"{state} has it; give another name with --task"}, 2)
    assert (job.status, job.error) == ("failed", "the state has it; give the round another name")
    assert not job.restart_helps
    jobs._conclude(job, now, {"event": "failed", "error": f"{state}: is half learned; give --restart to begin anew"}, 2)
    assert job.as_json()["restart_helps"]
    assert "--" not in str(job.error)
    assert "restart=true" in str(job.error)


def test_a_lesson_is_named_like_its_class_until_a_round_is(state: Path, order: Callable[..., Order]) -> None:
    lessons = [order("cat", relearn=True, training={"epochs": 1}) for _ in range(2)]
    names = [worker.learn(lesson, Progress()).record["tasks"][-1]["name"] for lesson in lessons]
    assert names == ["cat", "task-3"]


def test_a_round_that_somebody_else_began_is_not_dropped_unasked(state: Path, order: Callable[..., Order]) -> None:
    opened = State.open(state)
    with opened.writer():
        begun = {"base": base_of(opened.version.record["tasks"]), "task": "theirs", "classes": []}
        opened.training.begin(begun)
    jobs = Jobs(state, 4)
    for label in ("cat", "ground"):
        refused = wait(jobs, jobs.submit(order(label, training={"epochs": 1}), label), over)
        assert (refused["status"], refused["restart_helps"]) == ("failed", True)
        assert opened.training.half_learned(opened.version.record["tasks"]) == "theirs"
    jobs.close()


def test_no_orphan(order: Callable[..., Order], state: Path) -> None:
    """A worker whose server has vanished stops by itself, and deletes what was uploaded."""
    asked = order("cat", training={"epochs": 100_000})
    before = State.open(state).version.id
    with TemporaryFile() as errors, started(errors) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(asked.line())
        process.stdin.close()  # as the system does for a server that was killed
        said = [json.loads(line) for line in process.stdout]
        code = process.wait(60)
        errors.seek(0)
        assert (code, errors.read().count(b"Traceback")) == (STOPPED, 0)
    assert "done" not in [line["event"] for line in said]
    assert not Path(asked.folder).exists()
    assert State.open(state).version.id == before


def test_the_queue_is_limited_and_a_server_that_stops_leaves_no_process(
    order: Callable[..., Order], state: Path, tmp_path: Path
) -> None:
    jobs = Jobs(state, 2)
    with jobs.quiet():
        waiting = [jobs.submit(order(name), name) for name in ("cat", "ground")]
        assert jobs.full
        late = order("bee")
        with pytest.raises(QueueFull, match="2 jobs wait"):
            jobs.submit(late, "bee")
        assert Path(late.folder).exists(), "still the caller's"
        assert [job["teaches"] for job in jobs.list()] == ["ground", "cat"]
    wait(jobs, waiting[0], lambda job: job["status"] == "running")
    jobs.halt()
    assert jobs.closed
    closing = threading.Thread(target=jobs.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert not workers()
    first, second = (wait(jobs, job, over) for job in waiting)
    assert (first["status"], second["status"]) == ("failed", "failed")
    assert "was stopped" in first["error"]
    assert "before this was begun" in second["error"]
    assert sorted(tmp_path.glob("upload-*")) == [Path(late.folder)]
    with pytest.raises(QueueFull, match="stopping"):
        jobs.submit(late, "bee")


def test_what_a_killed_server_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    alive = Shelf()
    kept = alive.make()
    left = tmp_path / "sapwood-uploads-left"
    (left / "lesson").mkdir(parents=True)
    (left / "lock").touch()
    foreign = tmp_path / "sapwood-uploads-no-lock"
    foreign.mkdir()
    second = Shelf()
    assert kept.is_dir()
    assert not left.exists()
    assert foreign.is_dir()
    shutil.rmtree(second.folder)
    assert second.make().is_dir(), "a system clears its temporary folders while a server runs"
    second.close()
    alive.close()
    assert sorted(tmp_path.iterdir()) == [foreign]
