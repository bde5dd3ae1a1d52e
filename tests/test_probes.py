"""Pictures that a state keeps to measure on: never learned, measured after every round, and gone when told to go."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from listening import Listener
from PIL import Image

from sapwood.data.store import PictureStore
from sapwood.errors import ConfigError, DataError, RoundRefused
from sapwood.learner import Learner
from sapwood.preparation import prepare_round
from sapwood.probes import kept_bytes, read_probes, remove_probes
from sapwood.progress import Progress
from sapwood.repair import list_classes, merge_classes, relabel, remove_class, rename_class

Folders = Callable[..., Path]
TINY = {"backbone": "random:dinov2-tiny", "method": "ncm", "image_size": 28}


@pytest.fixture
def first(picture_folder: Folders) -> Path:
    folder = picture_folder({"ant": 12, "bee": 12, "cow": 3, "dog": 1}, name="first", size=40)
    where = Image.Exif()
    where[0x010E] = "somewhere"
    for file in folder.rglob("*.png"):
        Image.open(file).save(file, exif=where)
        assert b"somewhere" in file.read_bytes()
    return folder


@pytest.fixture
def learner(tmp_path: Path, first: Path) -> Learner:
    return Learner.create(tmp_path / "state", **TINY).learn(first, task="one", keep_probe=4)


def digests(learner: Learner, name: str = "pictures.jsonl") -> set[str]:
    files = [file for file in learner.record["files"] if file.endswith(f"/{name}")]
    return {json.loads(line)["sha256"] for file in files for line in learner.state.text(file).splitlines()}


def test_what_is_kept_is_never_learned_and_is_the_picture_as_it_was_seen(learner: Learner, first: Path) -> None:
    probes = read_probes(learner.state)
    assert {name: [p.classes[0] for p in probes].count(name) for name in learner.classes_} == {
        "ant": 4,
        "bee": 4,
        "cow": 1,  # at most half
        "dog": 0,
    }
    kept, seen = digests(learner, "probe.jsonl"), digests(learner)
    assert len(kept) == 9
    assert len(seen) == 19
    assert not kept & seen
    assert {entry["name"]: entry["pictures"] for entry in list_classes(learner.state)}["ant"] == 8

    store = PictureStore(learner.kind.probe_pictures(probes), 35)  # a quarter above the views
    originals = PictureStore(learner.kind.read(first), 35)
    given = {sha256: originals[index] for index, sha256 in enumerate(originals.sha256)}
    for index, probe in enumerate(probes):
        assert np.array_equal(store[index], given[probe.sha256])
        assert not Image.open(io.BytesIO(probe.content)).info
        assert b"somewhere" not in probe.content


def test_old_classes_are_measured_on_what_was_kept(tmp_path: Path, learner: Learner, picture_folder: Folders) -> None:
    before = {probe.sha256 for probe in read_probes(learner.state)}
    assert learner.record["accuracy_on"] == ["probe"]
    second = picture_folder(["eel", "fox"], 8, name="second", size=40)
    learner.learn(second, task="two")  # as the round before
    probes = read_probes(learner.state)
    assert {probe.sha256 for probe in probes} > before
    assert sum(probe.classes[0] in ("eel", "fox") for probe in probes) == 8
    assert learner.record["accuracy_on"] == ["probe", "probe"]

    # The same pictures, from their files, through `evaluate`: a cell is what anybody would measure.
    wanted = {probe.sha256 for probe in probes}
    held = tmp_path / "held"
    for folder in (tmp_path / "first", second):
        store = PictureStore(learner.kind.read(folder), 35)
        for picture, sha256 in zip(store.pictures, store.sha256, strict=True):
            if sha256 in wanted:
                (held / str(picture.label)).mkdir(parents=True, exist_ok=True)
                shutil.copy(picture.name, held / str(picture.label))
    measured = learner.evaluate(held)
    assert measured.images == len(probes) == 17
    assert measured.learned_images == 0
    assert learner.accuracy_[1] == [measured.per_task["one"], measured.per_task["two"]]

    learner.learn(picture_folder(["gnu"], 4, name="third"), task="three", test=held)  # what is given goes first
    assert learner.record["accuracy_on"][2] == "test"


def test_what_is_kept_stays_out_of_later_rounds(learner: Learner, first: Path, picture_folder: Folders) -> None:
    kept = {probe.sha256 for probe in read_probes(learner.state)}
    again = picture_folder({"ant": 12, "bee": 6}, name="again", seed=7, size=40)
    for file in (first / "ant").iterdir():  # the pictures of before, four of them kept
        shutil.copy(file, again / "ant" / f"old-{file.name}")
    for number, name in enumerate(sorted((again / "bee").iterdir())):
        shutil.copy(name, again / "bee" / f"twice-{number}.png")
    listener = Listener()
    learner.learn(again, task="again", keep_probe=5, progress=listener)
    probes = read_probes(learner.state)
    assert "4 of the pictures are kept to measure on already, and are not learned" in listener.lines
    assert not digests(learner) & {probe.sha256 for probe in probes}
    assert kept < {probe.sha256 for probe in probes}
    assert sum(probe.classes == ("bee",) for probe in probes) == 4  # pictures that come twice are not chosen

    learner.learn(again, task="none", keep_probe=0, relearn=True)
    assert learner.record["keep_probe"] == 0
    assert {probe.sha256 for probe in read_probes(learner.state)} == {probe.sha256 for probe in probes}

    only = again.parent / "only" / "ant"
    only.mkdir(parents=True)
    store = PictureStore(learner.kind.read(first), 35)
    for picture, sha256 in zip(store.pictures, store.sha256, strict=True):
        if sha256 in kept and picture.label == "ant":
            shutil.copy(picture.name, only)
    with pytest.raises(DataError, match="all 4 pictures are kept by"):
        learner.learn(only.parent, task="nothing")


def test_a_kept_picture_of_another_class_is_named(learner: Learner, first: Path, picture_folder: Folders) -> None:
    kept = {probe.sha256 for probe in read_probes(learner.state)}
    file = next(
        file for file in sorted((first / "ant").iterdir()) if hashlib.sha256(file.read_bytes()).hexdigest() in kept
    )
    again = picture_folder({"bee": 6}, name="again", seed=7, size=40)
    shutil.copy(file, again / "bee" / "moved.png")
    remarks = learner.announce(again).remarks
    assert any(
        "kept to measure on as another class" in line and "moved.png as 'ant', now 'bee'; if" in line
        for line in remarks
    )
    with pytest.raises(DataError, match=r"kept to measure on, as 'ant'; `sapwood probe .* --remove`"):
        relabel(learner.state, [file], "bee")


def test_the_same_pictures_give_the_same_choice(tmp_path: Path, learner: Learner, first: Path) -> None:
    for folder in first.iterdir():
        for position, file in enumerate(sorted(folder.iterdir(), reverse=True)):
            file.rename(folder / f"other-{position:02d}.png")
    twin = Learner.create(tmp_path / "twin", **TINY).learn(first, task="one", keep_probe=4)
    assert digests(twin, "probe.jsonl") == digests(learner, "probe.jsonl")


def test_a_round_that_was_committed_and_not_cleared_away_is_known_again(
    learner: Learner, picture_folder: Folders
) -> None:
    second = picture_folder(["eel", "fox"], 8, name="second")
    plan = prepare_round(learner.state, second, "two", progress=Progress()).plan
    learner.learn(second, task="two")
    version = learner.state.version.id
    with learner.state.writer():
        learner.state.training.begin(plan)  # what a kill right after the commit leaves
    listener = Listener()
    learner.learn(second, task="two", progress=listener)
    assert (learner.state.version.id, len(learner.record["tasks"])) == (version, 2)
    assert listener.lines == [f"this round was already committed as {version}"]


def test_a_drop_is_seen_on_what_was_kept(learner: Learner, picture_folder: Folders) -> None:
    version = learner.state.version.id
    rival = picture_folder({"ant": 12}, name="rival", seed=9, size=40)
    (rival / "ant").rename(rival / "aunt")
    with pytest.raises(RoundRefused, match=r"'ant' from 100\.0"):
        learner.learn(rival, task="two", max_drop=10)
    assert Learner.open(learner.state.path).state.version.id == version


def test_removed_pictures_leave_no_byte(learner: Learner, picture_folder: Folders) -> None:
    cells, stored = learner.accuracy_, kept_bytes(learner.record)
    assert stored > 9 * 1000
    assert remove_probes(learner.state) == 9
    learner.state.prune(1)
    assert not list(learner.state.path.rglob("probe.*"))
    opened = Learner.open(learner.state.path)
    assert opened.accuracy_ == cells
    assert (kept_bytes(opened.record), read_probes(opened.state)) == (0, [])
    with pytest.raises(ConfigError, match="keeps no pictures to measure on"):
        remove_probes(opened.state)
    opened.learn(picture_folder(["eel"], 6, name="second"), task="two")
    assert opened.record["accuracy_on"][1] == "validation"


def test_a_class_takes_its_pictures_along(learner: Learner) -> None:
    state, probes = learner.state, read_probes(learner.state)
    rename_class(state, "bee", "wasp")
    assert [p.classes[0] for p in read_probes(state)] == [
        {"bee": "wasp"}.get(p.classes[0], p.classes[0]) for p in probes
    ]
    remove_class(state, "ant")
    now = [replace(p, classes=({"bee": "wasp"}.get(p.classes[0], p.classes[0]),)) for p in probes]
    assert read_probes(state) == [p for p in now if p.classes != ("ant",)]
    merge_classes(state, "cow", "wasp")
    assert {p.classes for p in read_probes(state)} == {("wasp",)}
    assert len(read_probes(state)) == 5
    state.prune(1)
    ants = {p.sha256 for p in probes if p.classes == ("ant",)}
    assert not any(sha256 in path.read_text() for path in state.path.rglob("*.jsonl") for sha256 in ants)
    remove_class(state, "wasp")
    assert read_probes(state) == []


def test_what_is_refused(learner: Learner, tmp_path: Path, first: Path) -> None:
    with pytest.raises(ConfigError, match="--keep-probe must be 0 or more"):
        learner.learn(first, keep_probe=-1)
    store = PictureStore(learner.kind.read(first), 35)
    kept = {probe.sha256 for probe in read_probes(learner.state)}
    (tmp_path / "other" / "fox").mkdir(parents=True)
    shutil.copytree(first / "bee", tmp_path / "other" / "bee")
    for picture, sha256 in zip(store.pictures, store.sha256, strict=True):
        if sha256 in kept and picture.label == "ant":
            shutil.copy(picture.name, tmp_path / "other" / "fox")
    with pytest.raises(DataError, match="all pictures of the new class 'fox' are kept by"):
        learner.learn(tmp_path / "other")


def test_evaluation_says_which_pictures_were_learned(learner: Learner, first: Path) -> None:
    listener = Listener()
    measured = learner.evaluate(first, progress=listener)
    assert measured.learned_images == 19
    assert "19 of the test pictures were learned: they measure too much" in listener.lines
