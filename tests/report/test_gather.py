"""The report of a real state that learned two rounds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sapwood.learner import Learner
from sapwood.report import gather, render


@pytest.fixture
def learner(picture_folder, tmp_path: Path) -> Learner:
    learner = Learner.create(tmp_path / "my model", backbone="random:vit-tiny", method="ncm", image_size=32)
    first = picture_folder(["owl", "cat"], 6, name="first")
    second = picture_folder(["<dog>"], 6, name="second")
    return learner.learn(first, task="birds", test=first).learn(second, task="pets")


def test_the_report_says_what_the_state_holds(learner: Learner, picture_folder) -> None:
    report = gather(learner, picture_folder(["owl", "cat", "<dog>"], 3, name="test", seed=1), samples=6)
    assert report.title == "my model"
    assert report.version == learner.state.version.id
    assert report.classes == ("cat", "owl", "<dog>")
    assert [task.name for task in report.tasks] == ["birds", "pets"]
    assert [task.measured_on for task in report.tasks] == ["test", "validation"]
    on_disk = [
        sum(path.stat().st_size for path in folder.iterdir()) for folder in sorted(learner.state.path.glob("tasks/*"))
    ]
    assert [task.bytes for task in report.tasks] == on_disk
    assert report.accuracy[0][0] is not None
    assert report.numbers["forgetting"] is None  # the first task was not measured again
    assert {sample.true for sample in report.samples} == {"owl", "cat", "<dog>"}
    assert len(report.samples) == 6
    assert all(re.fullmatch(r"test/(owl|cat|<dog>)/00\d\.png", sample.name) for sample in report.samples)
    told = learner.predict([sample.image for sample in report.samples])
    assert [sample.predicted for sample in report.samples] == [prediction.label for prediction in told]
    assert report.settings["head"] == "prototype"
    assert "&lt;dog&gt;" in render(report)


def test_without_data_there_are_no_pictures(learner: Learner) -> None:
    assert gather(learner).samples == ()


def test_a_state_that_learned_nothing_has_a_report(tmp_path: Path) -> None:
    learner = Learner.create(tmp_path / "empty", backbone="random:vit-tiny", method="ncm", image_size=32)
    assert "Nothing was learned yet." in render(gather(learner))
