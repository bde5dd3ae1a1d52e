"""Pictures with masks that a state keeps to measure on: never learned, and measured for what their masks label."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from listening import Listener
from PIL import Image

from sapwood.data.masks import read_masks
from sapwood.errors import ConfigError, DataError, RoundRefused
from sapwood.learner import Learner
from sapwood.preparation import prepare_round
from sapwood.probes import PIXELS, Probe, kept_bytes, kept_counts, read_probes, remove_probes
from sapwood.progress import Progress
from sapwood.repair import remove_class, rename_class
from sapwood.state import State

from .helpers import FAST, SIZE, Folders, create, same

TRAINING = {**FAST, "batch_size": 4, "lr": 5e-3, "checkpoint_seconds": 1e-3}


@pytest.fixture
def first(mask_folder: Folders) -> Path:
    """Trees are in every picture, and background in every mask."""
    return mask_folder({"road": 9, "car": 6, "sign": 1}, 9, also=["tree"], name="first", size=(68, 96))


@pytest.fixture
def second(mask_folder: Folders) -> Path:
    return mask_folder(["tree"], 8, also=["road"], name="second", size=(68, 96), seed=1)


@pytest.fixture
def learner(tmp_path: Path, first: Path) -> Learner:
    return create(tmp_path / "state").learn(first, task="first", training=TRAINING, keep_probe=3)


def learned(learner: Learner) -> set[str]:
    """sha256 of the picture files that were learned."""
    files = [file for file in learner.record["files"] if file.endswith("/pictures.jsonl")]
    return {json.loads(line)["picture"] for file in files for line in learner.state.text(file).splitlines()}


def shows(probes: list[Probe], name: str) -> int:
    return sum(name in probe.classes for probe in probes)


def index_png(content: bytes | None) -> np.ndarray:
    image = Image.open(io.BytesIO(content or b""))
    assert image.mode == "P"
    return np.array(image)


def test_what_is_kept_is_never_learned_and_is_picture_and_mask_as_they_were_seen(learner: Learner, first: Path) -> None:
    probes = read_probes(learner.state)
    assert {name: shows(probes, name) for name in ("road", "car", "sign")} == {"road": 3, "car": 3, "sign": 0}
    assert kept_counts(learner.record) == len(probes) == 3  # each shows both
    assert len(learned(learner)) == 6
    assert not learned(learner) & {probe.sha256 for probe in probes}
    assert learner.record["accuracy_on"] == ["probe"]

    store = learner.kind.load(read_masks(first), SIZE, Progress(), skip_bad=False)
    place = {sha256: index for index, sha256 in enumerate(store.picture_sha256)}
    for probe in probes:
        assert probe.annotated == ("road", "car", "sign")
        assert np.array_equal(np.array(Image.open(io.BytesIO(probe.content))), store[place[probe.sha256]])
        assert np.array_equal(index_png(probe.mask), store.mask(place[probe.sha256]))  # values 1, 2, 3 there too
        assert min(index_png(probe.mask).shape) == round(1.25 * min(SIZE))
    counts = store.counts[[place[probe.sha256] for probe in probes]]
    assert (counts[:, [1, 2]] > 0).all()


def measured(learner: Learner) -> dict[str, float | None]:
    """IoU of each class on what is kept, pixel by pixel: a mask says nothing of classes that its round did not label.

    Computed from the masks that ``predict`` draws, without anything that ``learn`` counts with.
    """
    names = learner.classes_
    hit, truth, false = (dict.fromkeys(names, 0) for _ in range(3))
    for probe in read_probes(learner.state):
        drawn = np.array(names)[learner.predict([Image.open(io.BytesIO(probe.content))])[0].mask]
        values = index_png(probe.mask)
        for name in probe.annotated:
            assert name is not None
            here, said = values == probe.annotated.index(name) + 1, drawn == name
            hit[name] += int((here & said).sum())
            truth[name] += int(here.sum())
            false[name] += int((said & (values == 0)).sum())  # of background that its masks do label
        for name in names[1:]:  # where a labelled class is, every other answer is wrong
            other = (values > 0) & (values < 255) & (drawn == name)
            if name in probe.annotated:
                other &= values != probe.annotated.index(name) + 1
            false[name] += int(other.sum())
    return {name: hit[name] / (truth[name] + false[name]) if truth[name] else None for name in names[1:]}


def test_old_classes_are_measured_by_what_their_masks_label(learner: Learner, second: Path) -> None:
    found = measured(learner)
    assert found["sign"] is None  # never guessed, whatever is drawn as one
    assert learner.accuracy_[0][0] == pytest.approx(np.mean([found["road"], found["car"]]))
    learner.learn(second, task="second", training=TRAINING)  # as many as the round before
    probes = read_probes(learner.state)
    assert [probe.annotated for probe in probes] == [("road", "car", "sign")] * 3 + [("tree",)] * 3
    assert shows(probes, "tree") == 3
    found = measured(learner)
    roads, trees = np.mean([found["road"], found["car"]]), found["tree"]
    assert learner.accuracy_[1] == [pytest.approx(roads), pytest.approx(trees)]
    per_class = learner.record["tasks"][1]["measured"]["per_class"]
    assert per_class == {name: value if value is None else pytest.approx(value) for name, value in found.items()}
    # The same masks read as if they labelled everything: trees that the first round did not label would be mistakes.
    pictures = learner.kind.probe_pictures(probes)
    whole = type(pictures)([replace(picture, annotated=None) for picture in pictures], pictures.legend)
    naive = learner.evaluate(whole).per_class
    assert naive["tree"] < found["tree"] - 0.05  # type: ignore[operator]


def test_a_class_that_no_kept_mask_shows_is_not_measured(learner: Learner) -> None:
    kind, network = learner.kind, learner.network
    network.head.classifier.bias.data[3] += 1000  # everything is drawn as a sign
    tests = kind.load(kind.probe_pictures(read_probes(learner.state)), SIZE, Progress(), skip_bad=False)
    counts = kind.confusion(network, tests, learner.classes_, SIZE, Progress())
    assert kind.cells(counts, learner.classes_, learner.record["tasks"]) == [0.0]  # of the roads and cars
    found = kind.summary(counts, learner.classes_, learner.record["tasks"])
    assert found["per_class"] == {"road": 0.0, "car": 0.0, "sign": None}
    assert counts[1:].sum() == sum(int((index_png(probe.mask) > 0).sum()) for probe in read_probes(learner.state))


def test_a_picture_stays_kept_under_any_mask(learner: Learner, first: Path, second: Path) -> None:
    """In an overlapped stream a picture comes again, and its mask labels other classes."""
    kept = {probe.sha256 for probe in read_probes(learner.state)}
    for index in range(9):
        image, values = (first / part / f"{index:03d}.png" for part in ("images", "masks"))
        shutil.copy(image, second / "images" / f"again-{index}.png")
        mask = np.array(Image.open(values))
        Image.fromarray((mask == 0).astype(np.uint8)).save(second / "masks" / f"again-{index}.png")
    listener = Listener()
    learner.learn(second, task="second", training={**TRAINING, "epochs": 1}, progress=listener)
    assert "3 of the pictures are kept to measure on already, and are not learned" in listener.lines
    assert not learned(learner) & kept
    now = {probe.sha256 for probe in read_probes(learner.state)}
    rounds = [file for file in learner.record["files"] if file.endswith("/pictures.jsonl")]
    before = {json.loads(line)["picture"] for line in learner.state.text(sorted(rounds)[0]).splitlines()}
    assert kept < now
    assert not now & before  # what was learned with another mask is not chosen

    only = second.parent / "only"
    for part in ("images", "masks"):
        (only / part).mkdir(parents=True)
    (only / "classes.json").write_text(json.dumps({"background": 0, "pole": 1}))
    store = learner.kind.load(read_masks(first), SIZE, Progress(), skip_bad=False)
    for picture, sha256 in zip(store.pictures, store.picture_sha256, strict=True):
        if sha256 in kept:
            stem = Path(picture.name).name
            shutil.copy(first / "images" / stem, only / "images" / stem)
            Image.fromarray(np.ones((68, 96), np.uint8)).save(only / "masks" / stem)
    with pytest.raises(DataError, match="all pictures of the new class 'pole' are kept by"):
        learner.learn(only, training=TRAINING)


def test_no_class_loses_more_than_half_and_the_choice_is_that_of_the_bytes(
    tmp_path: Path, mask_folder: Folders, learner: Learner, first: Path
) -> None:
    for part in ("images", "masks"):
        for position, file in enumerate(sorted((first / part).iterdir(), reverse=True)):
            file.rename(first / part / f"other-{position}.png")
    state = create(tmp_path / "twin").state
    twin = prepare_round(state, first, keep_probe=3, progress=Progress())
    assert {probe.sha256 for probe in twin.probes} == {probe.sha256 for probe in read_probes(learner.state)}
    many = prepare_round(state, first, keep_probe=100, progress=Progress())
    assert {name: shows(list(many.probes), name) for name in ("road", "car", "sign")} == {
        "road": 4,
        "car": 3,
        "sign": 0,
    }
    assert len(many.round) == 5


def test_a_class_takes_the_pictures_that_show_it_along(learner: Learner, second: Path, mask_folder: Folders) -> None:
    learner.learn(second, task="second", training={**TRAINING, "epochs": 1})
    state, probes = learner.state, read_probes(learner.state)
    rename_class(state, "tree", "oak")
    assert [probe.classes for probe in read_probes(state)][-1] == ("oak",)
    remove_class(state, "sign")  # no picture that is kept shows it
    assert [probe.sha256 for probe in read_probes(state)] == [probe.sha256 for probe in probes]
    assert read_probes(state)[0].annotated == ("road", "car", None)
    remove_class(state, "car")
    left = read_probes(state)
    assert [probe.classes for probe in left] == [("oak",)] * 3
    assert kept_counts(state.version.record) == 3
    opened = Learner.open(state.path)
    opened.learn(
        mask_folder(["pole"], 4, name="third", size=(68, 96), seed=2), task="third", training={**TRAINING, "epochs": 1}
    )
    assert opened.accuracy_[2][1] is not None
    assert opened.accuracy_[2][0] is None
    opened.undo()
    opened.undo()
    assert [probe.sha256 for probe in read_probes(opened.state)] == [probe.sha256 for probe in probes]
    remove_class(opened.state, "car")
    opened.state.prune(1)
    gone = {probe.sha256 for probe in probes if "car" in probe.classes}
    assert not any(sha256 in path.read_text() for path in state.path.rglob("probe.jsonl") for sha256 in gone)


def test_a_drop_is_seen_on_what_was_kept_and_all_can_go(learner: Learner, first: Path, mask_folder: Folders) -> None:
    version, cells = learner.state.version.id, learner.accuracy_
    rival = mask_folder({"lane": 9}, 9, name="rival", size=(68, 96), values={"lane": 1})
    for file in (rival / "images").iterdir():  # what was a road is called a lane now
        shutil.copy(first / "images" / file.name, file)
        mask = np.array(Image.open(first / "masks" / file.name))
        pixels = np.array(Image.open(file))
        Image.fromarray(np.clip(pixels.astype(int) + 1, 0, 255).astype(np.uint8)).save(file)
        Image.fromarray((mask == 1).astype(np.uint8)).save(rival / "masks" / file.name)
    with pytest.raises(RoundRefused, match="'road' from"):
        learner.learn(rival, task="second", training={**TRAINING, "epochs": 6}, max_drop=5)
    assert Learner.open(learner.state.path).state.version.id == version
    assert kept_bytes(learner.record) > 3 * 1000
    assert remove_probes(learner.state) == 3
    learner.state.prune(1)
    assert not list(learner.state.path.rglob("probe.*"))
    opened = Learner.open(learner.state.path)
    assert (opened.accuracy_, read_probes(opened.state)) == (cells, [])
    with pytest.raises(ConfigError, match="keeps no pictures to measure on"):
        remove_probes(opened.state)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes here are forked")
@pytest.mark.parametrize("die", ["training 2", "before commit", "after commit"])
def test_a_killed_round_keeps_the_same_pictures(learner: Learner, second: Path, learning: Any, die: str) -> None:
    path = learner.state.path
    killed = shutil.copytree(path, path.parent / "killed")
    learner.learn(second, task="second", training=TRAINING)
    status, _ = learning(killed, second, task="second", training=TRAINING, die=die)
    assert status == -9
    rounds = len(State.open(killed).version.record["tasks"])
    assert rounds == (2 if die == "after commit" else 1)
    assert len(read_probes(State.open(killed))) == 3 * rounds
    status, said = learning(killed, second, task="second", training=TRAINING)
    assert status == 0, said
    again = Learner.open(killed)
    assert same(learner, again)
    assert read_probes(again.state) == read_probes(learner.state)
    assert again.accuracy_ == learner.accuracy_
    folder = again.record["tasks"][-1]["folder"]
    mine, other = (each.state.tensors(f"{folder}/{PIXELS}") for each in (again, learner))
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
