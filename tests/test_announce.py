"""What is said before a round trains, and a round that is refused because an old class would suffer."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.errors import ConfigError, DataError, Interrupted, RoundRefused
from sapwood.learner import Learner
from sapwood.progress import Progress

Folders = Callable[..., Path]
TINY = "random:dinov2-tiny"
FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32"}


class Listener(Progress):
    """Keeps what it hears; stops the work by Ctrl-C when predictions begin for the ``stop``-th time."""

    def __init__(self, stop: int = 0) -> None:
        self.lines: list[str] = []
        self.begun: list[tuple[str, int]] = []
        self.stop = stop

    def note(self, text: str) -> None:
        self.lines.append(text)

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.begun.append((what, total))
        self.stop -= what == "predicting"
        if what == "predicting" and self.stop == 0:
            os.kill(os.getpid(), signal.SIGINT)


def all_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def copied(learner: Learner, to: Path) -> Learner:
    shutil.copytree(learner.state.path, to)
    return Learner.open(to)


@pytest.fixture
def birds(tmp_path: Path, picture_folder: Folders) -> Learner:
    """A state that knows kestrels, bees and owls."""
    learner = Learner.create(tmp_path / "birds", backbone=TINY, method="ncm", image_size=28)
    return learner.learn(picture_folder(["kestrel", "bee", "owl"], 12, name="first"), task="one", training=FAST)


# --- what is said


def test_everything_that_is_said_of_a_round(birds: Learner, tmp_path: Path, picture_folder: Folders) -> None:
    second = picture_folder({"owl": 30, "bee": 2, "cow": 1}, name="second", seed=4)
    (second / "owl").rename(second / "Kestral")
    again = tmp_path / "first"
    shutil.copy(again / "bee" / "003.png", second / "bee" / "same.png")
    shutil.copy(again / "owl" / "000.png", second / "cow" / "other.png")
    test = picture_folder({"owl": 2}, name="test", seed=5)
    shutil.copy(again / "owl" / "001.png", test / "owl" / "seen.png")
    before, listener = all_bytes(birds.state.path), Listener()
    said = birds.announce(second, test=test, progress=listener)

    assert all_bytes(birds.state.path) == before
    assert (said.task, said.standing, said.version) == ("task-2", "new", birds.state.version.id)
    assert (said.new, said.known) == ({"Kestral": 30, "cow": 2}, {"bee": (2, 12)})
    assert said.similar == (("Kestral", "kestrel"),)
    assert {(Path(each.picture).name, *list(vars(each).values())[1:]) for each in said.duplicates} == {
        ("same.png", "bee", "one", "bee", True),
        ("other.png", "cow", "one", "owl", False),
    }
    assert said.remarks == ("1 of the test pictures were learned in earlier rounds: they measure too much",)
    assert ("predicting", 12 + 2 + 2) in listener.begun  # a sample
    by_name = {each.name: each for each in said.called}
    answers = [answer.label for answer in birds.predict(second / "Kestral")]
    assert answers.count("owl") > 24, "else this test says nothing"
    assert (by_name["Kestral"].called, by_name["Kestral"].images) == ("owl", 12)
    assert by_name["Kestral"].share >= 9 / 12
    lines = "\n".join(said.lines())
    for line in (
        "new classes: cow (2 pictures), Kestral (30 pictures)",
        "known classes: bee (2 pictures, 12 before)",
        "learned before, and left out: 1 of the pictures:",
        "learned before, and learned again: 1 of the pictures:",
        "'Kestral' is named nearly like the known class 'kestrel'",
        "other.png was 'owl', now 'cow'; one of the two is wrong",
        f"today {100 * by_name['Kestral'].share:.0f} % of 'Kestral' is called 'owl' (12 looked at)",
    ):
        assert line in lines
    facts = said.as_json()
    assert facts["known_classes"] == [{"name": "bee", "images": 2, "images_before": 12}]
    assert facts["estimated_seconds"] > 0

    learned = Listener()
    birds.learn(second, test=test, progress=learned)
    assert learned.lines[: len(said.lines()) - 1] == said.lines()[:-1], "learn says it first; only the estimate varies"


def test_shares_are_those_of_the_predictions(birds: Learner, picture_folder: Folders) -> None:
    second = picture_folder(["ant", "cat", "dog", "eel", "fox"], 9, name="second")
    birds.learn(picture_folder(["gnu"], 9, name="more"))
    said = {each.name: each for each in birds.announce(second, training={"validation": 0}).called}
    for name in ("ant", "cat", "dog", "eel", "fox"):
        labels = [answer.label for answer in birds.predict(second / name)]
        best = max(set(labels), key=labels.count)
        if 2 * labels.count(best) >= 9:
            assert (said[name].called, said[name].share, said[name].images) == (best, labels.count(best) / 9, 9)
        else:
            assert name not in said


def test_masks(tmp_path: Path, mask_folder: Folders) -> None:
    learner = Learner.create(tmp_path / "state", backbone=TINY, method="clora+mib", image_size=(28, 42))
    learner.learn(mask_folder(["road", "car"], 16, name="first"), training=FAST | {"epochs": 12, "lr": 0.02})
    second = mask_folder({"lane": 8, "road": 3}, name="second", seed=2)
    roads = mask_folder({"road": 8}, name="roads", seed=3)  # lanes that look like roads
    shutil.rmtree(second / "images")
    shutil.rmtree(second / "masks")
    for part in ("images", "masks"):
        (roads / part).rename(second / part)
    before = all_bytes(learner.state.path)
    said = learner.announce(second, training={"validation": 0})
    assert all_bytes(learner.state.path) == before
    assert (said.new, said.known) == ({"lane": 8}, {})
    drawn = [answer.mask for answer in learner.predict(second / "images")]
    counts = np.zeros(3, int)
    for mask, path in zip(drawn, sorted((second / "masks").iterdir()), strict=True):
        counts += np.bincount(mask[np.array(Image.open(path)) == 1], minlength=3)
    best = int(counts.argmax())
    assert best, "else this test says nothing"
    assert 2 * counts[best] >= counts.sum()
    (called,) = said.called
    assert (called.called, called.share, called.images) == (learner.classes_[best], counts[best] / counts.sum(), 8)
    share = 100 * counts[best] / counts.sum()
    assert f"today {share:.0f} % of the pixels of 'lane' are drawn as {learner.classes_[best]!r}" in said.lines()[-2]


def test_a_half_learned_round_is_left_as_it_is(tmp_path: Path, picture_folder: Folders) -> None:
    learner = Learner.create(tmp_path / "state", backbone=TINY, method="seq-lora", image_size=28)
    learner.learn(picture_folder(["ant", "bee"], 4, name="first"), training=FAST)
    second = picture_folder(["cat"], 4, name="second")
    with pytest.raises(Interrupted):
        learner.learn(second, test=second, progress=Listener(stop=2))  # the first is the look at the new pictures
    before = all_bytes(learner.state.path)
    assert any(name.startswith("training/checkpoint-") for name in before)
    said = learner.announce(second)
    assert said.standing == "half learned"
    assert "it goes on from its last checkpoint" in said.lines()[-2]
    with pytest.raises(ConfigError, match="half learned with other options"):
        learner.announce(second, training={"epochs": 3})
    assert learner.announce(second, training={"epochs": 3}, restart=True).standing == "new"
    assert all_bytes(learner.state.path) == before


# --- a round that is refused


@pytest.fixture
def rival(picture_folder: Folders) -> Path:
    """A new class whose pictures look like kestrels: some of these will be called by it."""
    folder = picture_folder({"kestrel": 12}, name="rival", seed=6)
    (folder / "kestrel").rename(folder / "wasp")
    return folder


def test_a_round_that_harms_is_refused_and_leaves_no_trace(
    birds: Learner, tmp_path: Path, picture_folder: Folders, rival: Path
) -> None:
    test = picture_folder(["kestrel", "bee"], 8, name="test", seed=7)
    accepted, exact = copied(birds, tmp_path / "accepted"), copied(birds, tmp_path / "exact")
    was = birds.evaluate(test).per_class
    now = accepted.learn(rival, task="two").evaluate(test).per_class
    drop = 100 * (was["kestrel"] - now["kestrel"])
    assert drop > 0, "else this test says nothing"
    assert was["bee"] == now["bee"]
    before, answers = all_bytes(birds.state.path), birds.predict(test)
    for _ in range(2):  # repeated, it behaves the same
        listener = Listener()
        with pytest.raises(RoundRefused) as refused:
            birds.learn(rival, task="two", test=test, max_drop=drop - 0.01, progress=listener)
        assert refused.value.facts == {
            "committed": False,
            "version": birds.state.version.id,
            "task": "two",
            "max_drop": drop - 0.01,
            "dropped": [{"class": "kestrel", "before": was["kestrel"], "after": now["kestrel"]}],
        }
        text = str(refused.value)
        assert f"'kestrel' from {100 * was['kestrel']:.1f} to {100 * now['kestrel']:.1f} %" in text
        assert "\n" not in text
        assert refused.value.exit_code == 3
        assert "not among the test pictures, so --max-drop does not see them: owl" in listener.lines
        assert all_bytes(birds.state.path) == before
        assert birds.classes_ == ("bee", "kestrel", "owl")
        assert birds.predict(test) == answers
    exact.learn(rival, task="two", test=test, max_drop=drop)
    assert exact.classes_ == accepted.classes_  # as much as allowed is not too much
    birds.learn(rival, task="two")
    for name in ("head.safetensors", "pictures.jsonl"):
        files = [learner.state.path / "tasks" / "0002-two" / name for learner in (birds, accepted, exact)]
        assert len({file.read_bytes() for file in files}) == 1


def test_masks_that_harm_are_refused(tmp_path: Path, mask_folder: Folders) -> None:
    learner = Learner.create(
        tmp_path / "state", backbone=TINY, method="seq-lora", image_size=(28, 42), kind="segmentation"
    )
    training = FAST | {"epochs": 6, "lr": 0.02}
    learner.learn(mask_folder(["road", "car"], 12, name="first"), training=training)
    second = mask_folder(["tree"], 8, also=["road", "car"], name="second")
    test = mask_folder(["tree", "road", "car"], 6, name="test", seed=3)
    accepted = copied(learner, tmp_path / "accepted")
    was = torch.tensor(learner.evaluate(test).confusion)
    now = torch.tensor(accepted.learn(second, task="two").evaluate(test).confusion)
    now = now[[accepted.classes_.index(name) for name in learner.classes_]]  # not the pixels of trees
    before = all_bytes(learner.state.path)

    def iou(counts: torch.Tensor, channel: int) -> float:
        right = int(counts[channel, channel])
        return right / int(counts[channel].sum() + counts[:, channel].sum() - right)

    drops = {name: (iou(was, c), iou(now, c)) for c, name in enumerate(learner.classes_) if c}
    worst = max(drops, key=lambda name: drops[name][0] - drops[name][1])
    one, two = drops[worst]
    assert one > two, "else this test says nothing"
    with pytest.raises(RoundRefused, match="IoU fell by more than 0 points") as refused:
        learner.learn(second, task="two", test=test, max_drop=0)
    first = refused.value.facts["dropped"][0]  # type: ignore[index]
    assert first == {"class": worst, "before": pytest.approx(one), "after": pytest.approx(two)}
    assert all_bytes(learner.state.path) == before
    learner.learn(second, task="two", test=test, max_drop=100 * (one - two) + 1e-6)


def test_ctrl_c_while_measuring(birds: Learner, picture_folder: Folders, rival: Path) -> None:
    test = picture_folder(["kestrel"], 3, name="test", seed=7)
    before = all_bytes(birds.state.path)
    for moment in (1, 2):  # the look at the new pictures, the old classes before the round
        with pytest.raises(Interrupted):
            birds.learn(rival, test=test, max_drop=100, progress=Listener(stop=moment))
        assert all_bytes(birds.state.path) == before, "no round has begun"
    with pytest.raises(Interrupted, match="the same command goes on"):
        birds.learn(rival, test=test, max_drop=100, progress=Listener(stop=3))
    assert {name: content for name, content in all_bytes(birds.state.path).items() if name in before} == before
    assert birds.state.training.plan() is not None
    birds.learn(rival, test=test, max_drop=100)
    assert "wasp" in birds.classes_


def test_what_cannot_be_compared_is_refused(birds: Learner, picture_folder: Folders, rival: Path) -> None:
    unknown: dict[str, Any] = {"test": rival, "max_drop": 5}
    for options, error, message in (
        ({"max_drop": 5}, ConfigError, "with --test"),
        ({"test": rival, "max_drop": -1}, ConfigError, r"0\.\.100 percentage points, got -1"),
        ({"test": rival, "max_drop": float("nan")}, ConfigError, "got nan"),
        (unknown, DataError, "none of the old classes bee, kestrel, owl is among the test pictures"),
    ):
        before = all_bytes(birds.state.path)
        with pytest.raises(error, match=message):
            birds.learn(rival, **options)
        assert all_bytes(birds.state.path) == before


def test_a_first_round_has_no_old_classes(tmp_path: Path, picture_folder: Folders) -> None:
    data = picture_folder(["ant", "bee"], 4)
    learner = Learner.create(tmp_path / "state", backbone=TINY, method="ncm", image_size=28)
    assert learner.learn(data, test=data, max_drop=0).classes_ == ("ant", "bee")
