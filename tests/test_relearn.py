"""A folder that grew: what was learned before is left out, unless it is to be learned again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from listening import Listener

from sapwood.errors import DataError
from sapwood.learned import learned_pictures
from sapwood.learner import Learner

Folders = Callable[..., Path]


@pytest.fixture
def learner(tmp_path: Path, picture_folder: Folders) -> Learner:
    """Ants and bees, learned from the folder ``birds``."""
    made = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ridge", image_size=28)
    return made.learn(picture_folder(["ant", "bee"], 12, name="garden"), task="one")


def grown(tmp_path: Path, picture_folder: Folders) -> tuple[Path, Path]:
    """The garden with more ants and with cats, and what came alone."""
    more = picture_folder({"ant": 11, "cat": 11}, name="more", seed=7)
    for file in more.glob("*/*.png"):
        file.rename(file.with_name(f"new-{file.name}"))
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "garden", whole)
    shutil.copytree(more, whole, dirs_exist_ok=True)
    return whole, more


def sums(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.network.head.state_dict().items()}


def test_a_folder_that_grew_teaches_what_is_new(learner: Learner, tmp_path: Path, picture_folder: Folders) -> None:
    whole, more = grown(tmp_path, picture_folder)
    shutil.copytree(learner.state.path, tmp_path / "twin")
    twin = Learner.open(tmp_path / "twin").learn(more, task="two")
    listener = Listener()
    learner.learn(whole, task="two", progress=listener)
    assert any("learned before, and left out: 24 of the pictures" in line for line in listener.lines)
    assert learner.record["tasks"][-1]["images"] == 22
    mine, other = sums(learner), sums(twin)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_relearn_counts_them_again(learner: Learner, tmp_path: Path, picture_folder: Folders) -> None:
    whole, _ = grown(tmp_path, picture_folder)
    listener = Listener()
    learner.learn(whole, task="two", relearn=True, progress=listener)
    assert any("learned before, and learned again: 24 of the pictures" in line for line in listener.lines)
    assert learner.record["tasks"][-1]["images"] == 46


def test_nothing_new_is_refused_and_nothing_changes(learner: Learner, tmp_path: Path) -> None:
    version = learner.state.version.id
    with pytest.raises(DataError, match=r"all 24 pictures were learned before \(round 'one'\).*--relearn"):
        learner.learn(tmp_path / "garden", task="two")
    assert learner.state.version.id == version
    assert learner.state.training.load() is None


def test_a_picture_with_another_class_is_learned(learner: Learner, tmp_path: Path) -> None:
    (tmp_path / "garden" / "ant").rename(tmp_path / "garden" / "aunt")
    learner.learn(tmp_path / "garden", task="two")
    assert learner.record["tasks"][-1]["images"] == 12
    assert learner.classes_ == ("ant", "bee", "aunt")


def test_what_was_committed_and_not_cleared_away(
    learner: Learner, tmp_path: Path, picture_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = grown(tmp_path, picture_folder)
    with monkeypatch.context() as patch:  # what a kill between the commit and the clearing leaves behind
        patch.setattr("sapwood.state.training.TrainingFolder.clear", lambda self: None)
        learner.learn(whole, task="two")
    version, listener = learner.state.version.id, Listener()
    again = Learner.open(learner.state.path)
    with pytest.raises(DataError, match="were learned before"):
        again.learn(whole, task="three", restart=True)  # it does not learn them twice either
    again.learn(whole, task="two", progress=listener)
    assert again.state.version.id == version
    assert listener.lines == [f"this round was already committed as {version}"]


def test_repairs_are_not_undone_by_the_same_folder(learner: Learner, tmp_path: Path, picture_folder: Folders) -> None:
    from sapwood.repair import merge_classes, relabel, remove_class, rename_class

    whole, _ = grown(tmp_path, picture_folder)
    garden, state = tmp_path / "garden", learner.state
    relabel(state, [garden / "ant" / "000.png"], "bee")
    with pytest.raises(DataError, match="all 24 pictures were learned before"):
        Learner.open(state.path).learn(garden, task="as it was")
    rename_class(Learner.open(state.path).state, "ant", "emmet")
    with pytest.raises(DataError, match="all 24 pictures were learned before"):
        Learner.open(state.path).learn(garden, task="by the old name")
    merge_classes(Learner.open(state.path).state, "emmet", "bee")
    merged = Learner.open(state.path)
    assert merged.classes_ == ("bee",)
    listener = Listener()
    merged.learn(whole, task="more", progress=listener)
    assert any("left out: 24 of the pictures" in line for line in listener.lines)
    assert (merged.record["tasks"][-1]["images"], merged.classes_) == (22, ("bee", "ant", "cat"))
    remove_class(merged.state, "ant")
    again = Learner.open(state.path).learn(whole, task="after all")
    assert again.record["tasks"][-1]["images"] == 11, "nothing is left of a class that was removed"


def test_a_name_means_the_class_that_bears_it_today(learner: Learner, tmp_path: Path) -> None:
    from sapwood.repair import rename_class

    for old, new in (("ant", "x"), ("bee", "ant"), ("x", "bee")):
        rename_class(Learner.open(learner.state.path).state, old, new)
    swapped, listener = Learner.open(learner.state.path), Listener()
    assert swapped.classes_ == ("bee", "ant")
    said = swapped.announce([(tmp_path / "garden" / "ant" / "000.png", "ant")])
    assert [(each.label, each.learned_as, each.left_out) for each in said.duplicates] == [("ant", "bee", False)]
    swapped.learn([(tmp_path / "garden" / "ant" / "000.png", "ant")], task="to correct it", progress=listener)
    assert any("was 'bee', now 'ant'; one of the two is wrong" in line for line in listener.lines)
    with pytest.raises(DataError, match="all 1 pictures were learned before"):
        swapped.learn([(tmp_path / "garden" / "ant" / "001.png", "bee")], task="as it is")


def test_after_a_new_name_nothing_is_called_wrong(learner: Learner, tmp_path: Path, picture_folder: Folders) -> None:
    from sapwood.repair import rename_class

    whole, _ = grown(tmp_path, picture_folder)
    rename_class(learner.state, "ant", "emmet")
    lines = "\n".join(Learner.open(learner.state.path).announce(whole).lines())
    assert "learned before, and left out" in lines
    assert "one of the two is wrong" not in lines


def test_a_picture_in_two_classes_is_learned_once_in_each(learner: Learner, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "garden" / "ant" / "003.png", tmp_path / "garden" / "bee" / "twice.png")
    learner.learn(tmp_path / "garden", task="two")
    assert learner.record["tasks"][-1]["images"] == 1
    with pytest.raises(DataError, match="all 25 pictures were learned before"):
        learner.learn(tmp_path / "garden", task="three")


def test_pictures_that_come_twice_in_a_round_are_named(learner: Learner, picture_folder: Folders) -> None:
    new = picture_folder({"cat": 4, "dog": 3, "eel": 3}, name="new", seed=3)
    assert not any("same picture" in line or "given twice" in line for line in learner.announce(new).remarks)
    for number in (0, 1):
        shutil.copy(new / "cat" / f"00{number}.png", new / "dog" / f"copy-{number}.png")
    shutil.copy(new / "eel" / "002.png", new / "eel" / "another.png")
    remarks = learner.announce(new).remarks
    (apart,) = (line for line in remarks if line.startswith("the same picture in two classes: "))
    assert apart.endswith(f"{new / 'dog/copy-0.png'} as 'dog', and 1 more; one of the two is wrong")
    assert f"{new / 'cat/000.png'} as 'cat', " in apart
    (twice,) = (line for line in remarks if line.startswith("given twice, and counted twice: "))
    assert twice.endswith(f"{new / 'eel/another.png'} is {new / 'eel/002.png'} again; leave copies out")


def test_the_name_of_a_class_that_was_merged_is_known(learner: Learner, picture_folder: Folders) -> None:
    from sapwood.repair import merge_classes

    done = merge_classes(learner.state, "ant", "bee")
    assert any("must be of class 'bee' from now on" in remark for remark in done.remarks)
    merged = Learner.open(learner.state.path)
    remarks = merged.announce(picture_folder({"ant": 4}, name="more", seed=5)).remarks
    assert any("a known class was called so before: 'ant' (now 'bee')" in remark for remark in remarks)


def test_a_class_under_another_name_and_one_that_is_gone(learner: Learner, tmp_path: Path) -> None:
    from sapwood.repair import remove_class, rename_class

    rename_class(learner.state, "ant", "emmet")
    (tmp_path / "garden" / "ant").rename(tmp_path / "garden" / "emmet")
    remove_class(learner.state, "bee")
    renamed = Learner.open(learner.state.path)
    assert len(learned_pictures(renamed.state)) >= 12
    renamed.learn(tmp_path / "garden", task="two")
    assert renamed.record["tasks"][-1]["images"] == 12, "the bees alone"
    assert renamed.classes_ == ("emmet", "bee")
