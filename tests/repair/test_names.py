"""Other names for classes, what cannot be mended, and states of masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sapwood.errors import ConfigError, DataError
from sapwood.learner import Learner
from sapwood.repair import list_classes, merge_classes, relabel, remove_class, rename_class
from sapwood.state import State
from sapwood.state.training import base_of

from .helpers import FAST, Folders, learn, numbers


def test_a_class_keeps_its_id_and_its_predictions_under_another_name(tmp_path: Path, rounds: list[Path]) -> None:
    learner = learn(tmp_path / "state", "ncm", {}, *rounds, test=rounds[0])
    before = learner.predict([rounds[0]])
    done = rename_class(State.open(tmp_path / "state"), "bee", "Wasp")
    after = Learner.open(tmp_path / "state")
    assert after.classes_ == ("ant", "Wasp", "cow", "dog")
    assert (done.version.record["note"], after.record["classes"][1]["id"]) == ("rename bee -> Wasp", 1)
    assert after.accuracy_ == learner.accuracy_
    assert [task["annotated"] for task in after.record["tasks"]] == [["ant", "Wasp", "cow"], ["Wasp", "dog"]]
    named = {"bee": "Wasp"}
    assert [each.label for each in after.predict([rounds[0]])] == [named.get(each.label, each.label) for each in before]
    after.learn(shutil.copytree(rounds[1] / "bee", tmp_path / "more" / "Wasp").parent, relearn=True)
    assert after.record["tasks"][2]["classes"] == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda state: rename_class(state, "ant", "bee"), "classes STATE merge 'ant' 'bee'"),
        (lambda state: rename_class(state, "ant", "BEE"), "letter case only"),
        (lambda state: rename_class(state, "ant", "a/b"), "path separator"),
        (lambda state: rename_class(state, "ant", "ant"), "has this name already"),
        (lambda state: rename_class(state, "amt", "x"), "Did you mean 'ant'"),
        (lambda state: merge_classes(state, "ant", "ant"), "cannot be merged with itself"),
        (lambda state: remove_class(state, "eel"), "no class 'eel' is known"),
        (lambda state: relabel(state, ["nowhere.png"], "ant"), "nowhere.png"),
    ],
)
def test_what_cannot_be_changes_nothing(call: Callable[[State], Any], message: str, one_round: Path) -> None:
    state = State.open(one_round)
    with pytest.raises((ConfigError, DataError), match=message):
        call(state)
    assert State.open(one_round).version.id == state.version.id


def test_the_last_class_stays_and_an_id_is_never_used_again(one_round: Path, picture_folder: Folders) -> None:
    remove_class(State.open(one_round), "bee")
    with pytest.raises(DataError, match="'ant' is the last class"):
        remove_class(State.open(one_round), "ant")
    Learner.open(one_round).learn(picture_folder(["bee"], 2, name="again"))
    assert [(each["id"], each["name"]) for each in list_classes(State.open(one_round))] == [(0, "ant"), (2, "bee")]


def test_a_state_of_the_first_format_can_be_repaired(tmp_path: Path) -> None:
    """It kept no features; its means hold nothing that classes share."""
    old = shutil.copytree(Path(__file__).parents[1] / "state" / "fixtures" / "format1" / "ncm", tmp_path / "old")
    names = [each["name"] for each in list_classes(State.open(old))]
    means = numbers(old)["mean"]
    remove_class(State.open(old), names[0])
    assert torch.equal(numbers(old)["mean"], means[1:])
    assert list(Learner.open(old).classes_) == names[1:]


def test_a_half_learned_round_hinders_a_new_name_and_goes_with_its_ground(one_round: Path) -> None:
    state = State.open(one_round)
    state.training.begin({"base": base_of(state.version.record["tasks"]), "task": "half"})
    with pytest.raises(ConfigError, match="'half' is half learned"):
        rename_class(state, "ant", "eel")
    done = remove_class(state, "ant")
    assert "'half', which was half learned, has been dropped" in done.remarks[-1]
    assert state.training.plan() is None


def test_classes_of_masks_are_renamed_and_removed(tmp_path: Path, mask_folder: Folders) -> None:
    masks = [mask_folder(names, 2, name=names[0]) for names in (["road", "car"], ["tree"])]
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="clora+mib", image_size=(28, 42))
    for data in masks:
        learner.learn(data, test=data, training={**FAST, "batch_size": 2})
    logits = learner.network.predict(torch.zeros(1, 28, 42, 3, dtype=torch.uint8))
    rename_class(State.open(tmp_path / "state"), "car", "lorry")
    record = State.open(tmp_path / "state").version.record
    assert set(record["tasks"][1]["measured"]["per_class"]) == {"road", "lorry", "tree"}
    done = remove_class(State.open(tmp_path / "state"), "lorry")
    assert any("mostly the background" in remark for remark in done.remarks)
    after = Learner.open(tmp_path / "state")
    assert after.classes_ == ("background", "road", "tree")
    torch.testing.assert_close(
        after.network.predict(torch.zeros(1, 28, 42, 3, dtype=torch.uint8)), logits[:, [0, 1, 3]]
    )
    assert after.record["accuracy"][1] == [None, None], "that version is not the present one"
    listed = list_classes(after.state)
    assert [(entry["id"], entry["value"], entry["pictures"]) for entry in listed] == [
        (0, 0, None),
        (1, 1, None),
        (3, 2, None),
    ]
    for call in (
        lambda: merge_classes(after.state, "road", "tree"),
        lambda: relabel(after.state, [masks[0]], "road"),
        lambda: remove_class(after.state, "background"),
        lambda: rename_class(after.state, "road", "Background"),
    ):
        with pytest.raises((ConfigError, DataError), match=r"masks|background"):
            call()
    after.learn(mask_folder(["pole"], 2, name="pole"))
    assert after.classes_ == ("background", "road", "tree", "pole")
