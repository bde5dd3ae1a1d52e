"""Real processes: start, exit codes, signals, terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forking import fork_command

import sapwood
from sapwood.cli import main
from sapwood.cli.screen import BarProgress, LineProgress, error_line
from sapwood.errors import Interrupted, StateError
from sapwood.state import State

from .conftest import TINY, Run, World, tree

COMMANDS = ("learn", "predict", "evaluate", "show", "undo", "report", "demo", "methods", "backbones", "benchmarks")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(sapwood.__file__).parents[1])}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sapwood", *map(str, arguments)]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True)


def test_version_and_help() -> None:
    assert call("--version").stdout == f"sapwood {sapwood.__version__}\n"
    helped = call("--help")
    assert helped.returncode == 0
    assert all(f"\n  {name} " in helped.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(sapwood: Run, name: str) -> None:
    done = sapwood(name, "--help")
    assert done.code == 0
    assert "Usage: sapwood " + name in done.out


def test_what_needs_no_network_leaves_torch_alone(world: World) -> None:
    code = (
        "import sys\nfrom sapwood.cli import main\n"
        "try: main()\nexcept SystemExit as end: print(end.code or 0, 'torch' in sys.modules)"
    )
    state = str(world.state)
    name = State.open(state).version.record["classes"][0]["name"]
    of_states = (["show", state], ["classes", state], ["classes", state, "rename", name, "other"], ["undo", state])
    for arguments in (["--help"], ["learn", "--help"], *of_states):
        done = subprocess.run([sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "0 False", (arguments, done.stderr)


@pytest.mark.parametrize("arguments", [["fly"], ["learn"], ["predict", "x", "y", "--top", "0"], ["show", "x", "--jsn"]])
def test_wrong_usage_exits_with_2(sapwood: Run, arguments: list[str]) -> None:
    done = sapwood(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err or "Usage: " in done.err


@pytest.mark.parametrize("arguments", [["--debug", "show", "none"], ["show", "none", "--debug"]])
def test_the_traceback_comes_only_with_debug(sapwood: Run, arguments: list[str]) -> None:
    done = sapwood(*arguments)
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: none: no such state folder")
    plain = sapwood("show", "none")
    assert (plain.code, plain.err.count("\n")) == (2, 1)


def test_a_word_after_two_dashes_is_no_option(sapwood: Run) -> None:
    done = sapwood("show", "--", "--debug")
    assert done.err.splitlines() == ["error: --debug: no such state folder; `sapwood learn` makes one"]


def test_lines_for_every_kind_of_error(tmp_path: Path) -> None:
    assert error_line(StateError("a\nb")) == ("a\\nb", 2)
    assert error_line(Interrupted("stopped")) == ("stopped", 130)
    line, code = error_line(ZeroDivisionError("division by zero"))
    assert (line, code) == ("ZeroDivisionError: division by zero; this is a bug, run again with --debug", 1)
    with pytest.raises(IsADirectoryError) as caught:
        tmp_path.read_bytes()
    assert error_line(caught.value) == (f"Is a directory: {tmp_path}", 1)
    assert error_line(MemoryError()) == ("out of memory (MemoryError); lower --batch-size or --image-size", 1)


SLOW = (*TINY, "--method", "seq-lora", "--precision", "fp32", "--device", "cpu", "--batch-size", "8", "--epochs", "60")


def tensors(state: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(state).items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def undisturbed(read_only_world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    state = tmp_path_factory.mktemp("undisturbed") / "model"
    with pytest.raises(SystemExit) as ended:
        main(["learn", str(state), str(read_only_world.first), *SLOW])
    assert ended.value.code == 0
    return tensors(state)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_goes_on_where_it_was(
    sapwood: Run, tmp_path: Path, world: World, undisturbed: dict[str, bytes], number: int
) -> None:
    state = tmp_path / "stopped"
    said = tmp_path / "said"
    with said.open("wb") as file:
        process = fork_command("learn", state, world.first, *SLOW, stderr=file.fileno())
    until = time.monotonic() + 60
    while not (state / "training" / "plan.json").exists():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    code, errors = process.wait(), said.read_text()
    assert code == 130, errors
    assert errors.splitlines()[-1].startswith("error: stopped; the state is unchanged")
    assert sapwood("show", state, "--json").json["tasks"] == []

    before = tree(state)
    other = sapwood("learn", state, world.first, *SLOW, "--epochs", "20")
    assert other.code == 2
    assert "half learned with other options" in other.err
    assert "--restart" in other.err
    assert tree(state) == before
    assert sapwood("learn", state, world.first, *SLOW).code == 0
    assert tensors(state) == undisturbed
    assert len(undisturbed) == 2


def test_restart_begins_anew(sapwood: Run, world: World) -> None:
    opened = State.open(world.state)
    tasks = opened.version.record["tasks"]
    opened.training.begin({"base": [len(tasks), tasks[-1]["folder"]], "task": "half", "classes": []})
    opened.training.save({"w": torch.zeros(1)}, {})
    assert "round 'half' is half learned" in sapwood("show", world.state).out
    assert sapwood("show", world.state, "--json").json["half_learned"] == "half"
    done = sapwood("learn", world.state, world.first, "--relearn")
    assert done.code == 2
    assert "'half' is half learned" in done.err
    assert sapwood("learn", world.state, world.first, "--relearn", "--restart").code == 0


def test_undo_drops_what_is_half_learned_and_nothing_else(sapwood: Run, world: World) -> None:
    opened = State.open(world.state)
    tasks = opened.version.record["tasks"]
    opened.training.begin({"base": [len(tasks), tasks[-1]["folder"]], "task": "half", "classes": []})
    done = sapwood("undo", world.state)
    assert done.out == f"{world.state} is still {opened.version.id}, {opened.version.record['note']}\n"
    assert "round 'half', which was half learned, has been dropped" in done.err
    assert "nothing has been learned yet" not in done.err
    assert "half learned" not in sapwood("show", world.state).out
    assert sapwood("show", world.state, "--json").json["half_learned"] is None


def test_undo_of_a_half_learned_first_round_says_what_stays(sapwood: Run, tmp_path: Path, world: World) -> None:
    state = State.create(tmp_path / "new", {**State.open(world.state).version.record, "classes": [], "tasks": []})
    state.training.begin({"base": [0, None], "task": "half", "classes": []})
    done = sapwood("undo", state.path)
    assert "round 'half', which was half learned, has been dropped" in done.err
    assert f"nothing has been learned yet; for another method or backbone, remove {state.path} first" in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_json_stays_clean_while_a_bar_is_drawn(tmp_path: Path, read_only_world: World) -> None:
    import pty

    leader, follower = pty.openpty()
    state = tmp_path / "model"
    arguments = ("learn", state, read_only_world.first, *TINY, "--method", "seq-lora", "--epochs", "30", "--json")
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    with subprocess.Popen(command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=follower) as process:
        os.close(follower)
        drawn = b""
        try:
            while piece := os.read(leader, 65536):
                drawn += piece
        except OSError:
            pass  # how Linux says that the other end is closed
        output, _ = process.communicate()
    os.close(leader)
    assert process.returncode == 0, drawn
    assert len(json.loads(output)["tasks"]) == 1
    text = drawn.decode()
    assert "training" in text
    assert "/30" in text
    assert "loss" in text
    assert "new state " in text


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapwood.cli.screen._EVERY", 0.0)
    progress = LineProgress()
    progress.note("hello\nthere")
    progress.start("training", 4, 1)
    progress.advance(1, loss=0.5)
    progress.advance(2, loss=0.25)
    progress.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "hello\\nthere"
    assert lines[1].startswith("training: 2/4, loss 0.500, 0.0 s left")
    assert lines[2].startswith("training: 4/4, loss 0.250, ")
    assert len(lines) == 3


def test_a_bar_without_loss_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = BarProgress()
    progress.start("reading pictures", 2)
    progress.advance(2)
    progress.finish()
    progress.note("[bold]as it is[/bold]")
    progress.close()
    assert capsys.readouterr().err.strip() == "[bold]as it is[/bold]"
