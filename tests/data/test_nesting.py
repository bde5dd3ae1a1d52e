"""A folder of rounds given where one of the rounds is meant."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from listening import Listener

from sapwood.data.folder_remarks import folder_remarks
from sapwood.learner import Learner

Folders = Callable[..., Path]


def test_pictures_that_are_passed_over_are_remarked_upon(tmp_path: Path, picture_folder: Folders) -> None:
    folder = picture_folder(["ant", "bee"], 2, name="march")
    assert folder_remarks(folder) == []
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt", "bee/a.CR2", "ant/c.txt"):
        (folder / name).touch()
    assert folder_remarks(folder) == [
        "passed over: 2 pictures beside the class folders (a.jpg, b.PNG)",
        "passed over: 1 file of a kind that is not read; save them as JPEG or PNG (a.CR2)",
    ]


def test_a_folder_of_rounds_is_remarked_upon(tmp_path: Path, picture_folder: Folders) -> None:
    rounds = tmp_path / "rounds"
    picture_folder(["ant", "bee"], 3, name="rounds/march")
    picture_folder(["cow", "dog"], 3, name="rounds/april", seed=2)
    (said,) = folder_remarks(str(rounds))
    assert said == (
        f"the classes are the folders of {rounds}, each with folders of its own (april: cow, dog); "
        f"if those are the classes, learn them from {rounds / 'april'}"
    )
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ncm", image_size=28)
    listener = Listener()
    learner.learn(rounds, progress=listener)
    assert said in listener.lines
    assert learner.classes_ == ("april", "march"), "it is said, and done as it was asked for"


def test_one_class_folder_of_folders_among_others(tmp_path: Path, picture_folder: Folders) -> None:
    month = picture_folder(["horse", "sheep"], 3, name="month")
    picture_folder(["cat", "frog"], 3, name="month/animals", seed=2)
    (said,) = folder_remarks(month)
    assert said == (
        "animals holds folders alone (cat, frog), all pictures of which become the class 'animals'; "
        "if those are the classes, move them beside the others"
    )
    for file in (month / "horse").iterdir():
        file.unlink()
    (month / "horse" / "one").mkdir()
    (month / "horse" / "two").mkdir()
    assert folder_remarks(month) == [said], "folders without a picture are for another line"


def test_what_may_well_be_meant_is_not(tmp_path: Path, picture_folder: Folders) -> None:
    plain = picture_folder(["ant", "bee"], 3, name="plain")
    mixed = shutil.copytree(plain, tmp_path / "mixed")
    for year in ("2025", "2026"):  # a class with years, and one whose pictures lie in it
        shutil.copytree(plain / "ant", mixed / "ant" / year)
    single = tmp_path / "single"
    for name in ("ant", "bee"):
        shutil.copytree(plain / name, single / name / "pictures")
    parts = tmp_path / "parts"
    for part in ("train", "test"):
        shutil.copytree(plain, parts / part)
    table = tmp_path / "list.csv"
    table.write_text(f"path,label\n{next(plain.rglob('*.png'))},ant\n")
    pairs = [(np.zeros((4, 4, 3), np.uint8), "ant")]
    assert [folder_remarks(data) for data in (plain, mixed, single, parts, table, pairs)] == [[]] * 6
