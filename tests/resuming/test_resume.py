"""A round that is killed goes on and ends with the same tensors, bit for bit: real processes, real signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from listening import Listener

from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.progress import Progress
from sapwood.state import State

from .conftest import FIRST, Learning, Started

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes here are forked")

ROOT = Path(__file__).resolve().parents[2]

MOMENTS = [
    ("seq-lora", "reading pictures 3"),
    ("seq-lora", "training 1"),
    ("seq-lora", "training 7"),
    ("seq-lora", "training 12"),  # the last step: its checkpoint is not written yet
    ("seq-lora", "validation features 1"),
    ("seq-lora", "before commit"),
    ("lora+ewc", "training 7"),
    ("lora+ewc", "validation features 1"),
    ("lora+lwf", "training 7"),
    ("seq-lora+ridge", "features before 1"),
    ("seq-lora+ridge", "training 5"),
    ("seq-lora+ridge", "features 1"),
    ("seq-lora+slca", "features 1"),
    ("full-finetune", "training 7"),
    ("slca", "before commit"),
    ("ncm", "features 1"),
    ("ncm", "before commit"),
]


@pytest.mark.parametrize(("method", "moment"), MOMENTS, ids=[f"{method}, {moment}" for method, moment in MOMENTS])
def test_killed_rounds_go_on(method: str, moment: str, learning: Learning, started: Started, tmp_path: Path) -> None:
    state = started(method, tmp_path / "state")
    status, _ = learning(state, started.second, task="second", die=moment)
    assert status == -signal.SIGKILL
    assert len(State.open(state).version.record["tasks"]) == 1
    status, said = learning(state, started.second, task="second")
    assert status == 0
    training = [facts for facts in said if facts.get("doing") == "training"]
    steps = 0 if method == "ncm" else 12
    assert [facts["total"] for facts in training] == ([steps] if steps else [])
    if moment.startswith("training"):
        assert training[0]["done"] == int(moment.split()[1]) - 1  # from the last checkpoint, not from the start
    elif moment in ("validation features 1", "features 1", "before commit") and steps:
        assert training[0]["done"] == steps  # nothing is trained again
    started.undisturbed(method, state)


def test_killed_again_and_again(learning: Learning, started: Started, tmp_path: Path) -> None:
    state = started("seq-lora", tmp_path / "state")
    for _ in range(4):
        assert learning(state, started.second, task="second", die="training 3")[0] == -signal.SIGKILL
    assert learning(state, started.second, task="second")[0] == 0
    started.undisturbed("seq-lora", state)


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.11])
def test_killed_from_outside_at_no_chosen_moment(
    delay: float, learning: Learning, started: Started, tmp_path: Path
) -> None:
    state = started("seq-lora", tmp_path / "state")

    def kill(said: dict[str, Any]) -> int | None:
        if said.get("step") != 2:
            return None
        time.sleep(delay)
        return signal.SIGKILL

    learning(state, started.second, kill, task="second")
    ended = len(State.open(state).version.record["tasks"]) == 2 and not (state / "training").exists()
    if not ended:  # it may be faster than the signal
        assert learning(state, started.second, task="second")[0] == 0
    started.undisturbed("seq-lora", state)


def test_a_repeat_after_the_commit_says_so(learning: Learning, started: Started, tmp_path: Path) -> None:
    state = started("seq-lora", tmp_path / "state")
    assert learning(state, started.second, die="after commit")[0] == -signal.SIGKILL
    version = State.open(state).version
    assert len(version.record["tasks"]) == 2
    assert (state / "training").exists()
    status, said = learning(state, started.second)
    assert status == 0
    assert {"note": f"this round was already committed as {version.id}"} in said
    assert State.open(state).version.id == version.id
    assert not (state / "training").exists()


def test_another_round_after_the_commit_is_learned(
    learning: Learning, started: Started, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    state = started("ncm", tmp_path / "state")
    assert learning(state, started.second, task="second", die="after commit")[0] == -signal.SIGKILL
    third = picture_folder(["eel"], 4, name="third")
    status, said = learning(state, third, task="third")
    assert status == 0
    assert not any("already committed" in facts.get("note", "") for facts in said)
    assert [task["name"] for task in State.open(state).version.record["tasks"]] == ["first", "second", "third"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_a_checkpoint_comes_first(
    number: int, learning: Learning, started: Started, tmp_path: Path
) -> None:
    state = started("seq-lora", tmp_path / "state")
    seldom = {"checkpoint_seconds": 1e6}  # only the signal makes one
    status, said = learning(
        state, started.second, lambda said: number if said.get("step") == 2 else None, task="second", training=seldom
    )
    assert status == 130
    assert said[-2]["error"] == "Interrupted"
    assert "the same command goes on from the last checkpoint" in said[-2]["message"]
    assert len(list((state / "training").glob("checkpoint-*.safetensors"))) == 1
    assert len(State.open(state).version.record["tasks"]) == 1
    status, said = learning(state, started.second, task="second")  # another interval is no other round
    assert status == 0
    done = next(facts["done"] for facts in said if facts.get("doing") == "training")
    assert 2 <= done <= 12
    started.undisturbed("seq-lora", state)


def test_a_stop_in_the_fitting_phase(learning: Learning, started: Started, tmp_path: Path) -> None:
    state = started("seq-lora+ridge", tmp_path / "state")
    stop = {"features": signal.SIGTERM}
    status, _ = learning(state, started.second, lambda said: stop.get(said.get("doing", "")), task="second")
    assert status in (0, 130)
    assert learning(state, started.second, task="second")[0] == 0
    if status == 130:
        started.undisturbed("seq-lora+ridge", state)


def test_the_first_rounds_pictures_may_be_gone(learning: Learning, started: Started, tmp_path: Path) -> None:
    state = started("lora+lwf", tmp_path / "state")
    away = started.first.rename(started.first.with_name("away"))
    try:
        assert learning(state, started.second, task="second", die="training 4")[0] == -signal.SIGKILL
        assert learning(state, started.second, task="second")[0] == 0
    finally:
        away.rename(started.first)
    started.undisturbed("lora+lwf", state)


def test_killed_while_hidden_states_are_kept(learning: Learning, started: Started, tmp_path: Path) -> None:
    def learned(name: str, **job: Any) -> tuple[int, list[int]]:
        """Exit status, and for each feed how many views were still to be computed."""
        if not (tmp_path / name).exists():
            settings = {"adapter": {"blocks": "-1"}, "training": FIRST | {"cache_prefix": 2}}
            options = {"method": "lora+lwf", "image_size": 28, "settings": settings}
            Learner.create(tmp_path / name, backbone="random:dinov2-tiny", **options)
        status, said = learning(tmp_path / name, started.second, cache=str(tmp_path / f"{name} cache"), **job)
        return status, [facts["total"] for facts in said if facts.get("doing") == "blocks 0-0"]

    def files(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}

    assert learned("whole") == (0, [2 * 44, 4])
    (tmp_path / "killed cache").mkdir()  # with the attention that is the fastest here: bits depend on it
    shutil.copy(tmp_path / "whole cache" / "attention.json", tmp_path / "killed cache")
    assert learned("killed", die="hidden file 20") == (-signal.SIGKILL, [2 * 44])
    assert learned("killed", die="training 7") == (-signal.SIGKILL, [2 * 44 - 19, 4])
    assert learned("killed") == (0, [0, 0])
    kept, found = files("whole cache/hidden"), files("killed cache/hidden")
    assert len(kept) == 2 * 44 + 4
    assert {name: found[name] for name in kept} == kept
    assert [found[name] for name in found.keys() - kept.keys()] == [b""]  # where the first kill fell
    whole, killed = files("whole/tasks"), files("killed/tasks")
    assert [name for name in whole if name.endswith(".safetensors")]
    assert all(killed[name] == content for name, content in whole.items() if name.endswith(".safetensors"))


class Note(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def half(learning: Learning, started: Started, tmp_path: Path) -> Path:
    """A state whose second round is half learned."""
    state = started("seq-lora", tmp_path / "half")
    assert learning(state, started.second, task="second", die="training 7")[0] == -signal.SIGKILL
    return state


def test_other_options_are_refused_by_name(half: Path, started: Started, picture_folder: Callable[..., Path]) -> None:
    checkpoint = sorted((half / "training").iterdir())
    others: list[tuple[dict[str, Any], str]] = [
        ({"training": {"epochs": 3}}, r"training\.epochs was 2, now 3\)"),
        (
            {"training": {"lr": 1e-3, "batch_size": 4}},
            r"training\.batch_size was 8, now 4; training\.lr was 0\.0005, now 0\.001\)",
        ),
        ({"task": "third"}, r"task was 'second', now 'third'\)"),
        ({"data": picture_folder(["cat", "dog"], 23, name="fewer")}, r"other pictures\)"),
        ({"data": picture_folder(["cat", "eel"], 24, name="other")}, r"other classes; other pictures\)"),
    ]
    for changes, message in others:
        arguments = {"data": started.second, "task": "second"} | changes
        with pytest.raises(ConfigError, match=message) as caught:
            Learner.open(half).learn(**arguments)
        assert "repeat them to go on, or give --restart to begin anew" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert sorted((half / "training").iterdir()) == checkpoint


def test_options_that_change_nothing_are_taken(half: Path, learning: Learning, started: Started) -> None:
    status, said = learning(half, started.second, task="second", training={"workers": 2})
    assert status == 0
    assert next(facts["done"] for facts in said if facts.get("doing") == "training") == 6
    for name in ("adapter", "head"):
        one, two = (root / "tasks/0002-second" / f"{name}.safetensors" for root in (started.whole["seq-lora"], half))
        assert one.read_bytes() == two.read_bytes()


def test_restart_begins_anew(half: Path, learning: Learning, started: Started, tmp_path: Path) -> None:
    fresh = started("seq-lora", tmp_path / "fresh")
    other = {"lr": 1e-3}
    status, said = learning(half, started.second, task="second", training=other, restart=True)
    assert status == 0
    assert next(facts["done"] for facts in said if facts.get("doing") == "training") == 0
    assert learning(fresh, started.second, task="second", training=other)[0] == 0
    for name in ("adapter", "head"):
        one, two = (root / "tasks/0002-second" / f"{name}.safetensors" for root in (fresh, half))
        assert one.read_bytes() == two.read_bytes()


def test_a_damaged_plan_names_the_way_out(half: Path, started: Started) -> None:
    (half / "training" / "plan.json").write_text("{")
    with pytest.raises(Exception, match=r"plan\.json is damaged .*--restart"):
        Learner.open(half).learn(started.second, task="second")
    Learner.open(half).learn(started.second, task="second", restart=True)
    started.undisturbed("seq-lora", half)


def test_a_damaged_checkpoint_is_passed_over(half: Path, started: Started) -> None:
    (checkpoint,) = (half / "training").glob("checkpoint-*.safetensors")
    data = bytearray(checkpoint.read_bytes())
    data[-1] ^= 1
    checkpoint.write_bytes(data)
    Learner.open(half).learn(started.second, task="second")
    started.undisturbed("seq-lora", half)


def test_a_half_learned_round_still_predicts_as_before(half: Path, started: Started) -> None:
    answers = Learner.open(half).predict(started.second)
    assert {answer.label for answer in answers} <= {"ant", "bee"}


@pytest.mark.parametrize("readable", [True, False])
def test_undo_drops_a_half_learned_round_and_says_so(half: Path, started: Started, readable: bool) -> None:
    listener = Listener()
    if not readable:
        (half / "training" / "plan.json").write_text("{")
    learner = Learner.open(half)
    before = learner.state.version.id
    learner.undo(progress=listener)
    assert not (half / "training").exists()
    if readable:
        assert listener.lines == ["round 'second', which was half learned, has been dropped; nothing else has changed"]
        assert (learner.state.version.id, learner.classes_) == (before, ("ant", "bee"))
        learner.undo()
    assert learner.classes_ == (), "a plan that nobody can read may be what any commit left behind"


def test_one_fresh_process_resumes_what_another_began(started: Started, half: Path) -> None:
    """Without any forking: the command of a user who comes back the next day."""
    code = "import sys; from sapwood import Learner; Learner.open(sys.argv[1]).learn(sys.argv[2], task='second')"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(half), str(started.second)], env=environment, check=True)
    started.undisturbed("seq-lora", half)
