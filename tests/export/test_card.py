"""The model card shows names as they are, and only what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sapwood.export import export
from sapwood.learner import Learner


def section(text: str, name: str) -> str:
    return text.split(f"## {name}\n\n")[1].split("\n## ")[0]


def test_names_are_text(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    state = tmp_path / "state"
    learner = Learner.create(state, backbone="random:dinov2-tiny", method="ncm", kind="classification", image_size=28)
    learner.learn(picture_folder(["<b>bold|", "`code`", "two  blanks"], 2), task="one | two")
    export(state, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert r"\<b\>bold\|" in section(text, "Classes")
    assert r"\`code\`" in section(text, "Classes")
    assert r"| one \| two | 6 |" in section(text, "Rounds")
    assert text.startswith("---\nlicense: other\n")


def test_what_was_measured(rounds: Callable[[str], tuple[Path, ...]], tmp_path: Path) -> None:
    state = tmp_path / "state"
    first, second, tests = rounds("classification")
    learner = Learner.create(state, backbone="random:dinov2-tiny", method="ncm", kind="classification", image_size=28)
    learner.learn(first, task="first")
    learner.learn(second, task="second", test=tests)
    export(state, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    row = [line for line in section(text, "Accuracy").splitlines() if "after second" in line]
    cells = [cell.strip() for cell in row[0].strip("|").split("|")]
    measured = learner.record["accuracy"][1]
    assert cells == ["after second", *(f"{100 * cell:.1f}" for cell in measured), "test pictures"]
    assert "after first" not in section(text, "Accuracy")  # four pictures a class: nothing was held out
    rows = section(text, "Rounds").splitlines()[2:]
    assert [line.split("|")[1].strip() for line in rows[:2]] == ["first", "second"]
    assert learner.state.version.id in section(text, "Origin")
    assert learner.record["backbone"]["sha256"] in section(text, "Origin")
    assert "differ by" in section(text, "How it was checked")
