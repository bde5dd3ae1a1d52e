"""What the present version calls the classes of a round before it is learned: when that says something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sapwood.learner import Learner

Folders = Callable[..., Path]
TINY = "random:dinov2-tiny"


def test_a_single_known_class_is_no_answer(tmp_path: Path, picture_folder: Folders) -> None:
    learner = Learner.create(tmp_path / "state", backbone=TINY, method="ncm", image_size=28)
    learner.learn(picture_folder(["ant"], 3, name="first"))
    assert learner.announce(picture_folder(["bee"], 3, name="second")).called == ()


def test_known_classes_that_changed_places_are_said(tmp_path: Path, picture_folder: Folders) -> None:
    learner = Learner.create(tmp_path / "state", backbone=TINY, method="ranpac", image_size=28)
    names = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
    learner.learn(picture_folder(names, 8, name="first"))
    second = picture_folder([*names, "owl"], 4, name="second", seed=3)
    for name, other in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)):
        (second / names[name]).rename(second / f"as-{other}")
    for other in range(6):
        (second / f"as-{other}").rename(second / names[other])
    said = learner.announce(second, training={"validation": 0})
    moved = {each.name: each.called for each in said.called if each.name in names}
    assert moved == dict(zip(names[1:6] + names[:1], names[:6], strict=True))
    assert len(said.called) in (6, 7)  # the owl may look like one of them
    lines = said.lines()
    assert sum(line.startswith("today ") for line in lines) == 5
    assert f"so it is with {len(said.called) - 5} more classes; --dry-run --json lists them" in lines
