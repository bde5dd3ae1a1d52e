"""Mending a state: what is gone is gone, what was wrong was never so, and what may still be there is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood import history
from sapwood.errors import ConfigError, DataError
from sapwood.learner import Learner
from sapwood.repair import kept_bytes, list_classes, merge_classes, relabel, remove_class, rename_class
from sapwood.state import State

pytestmark = pytest.mark.usefixtures("settled")

Folders = Callable[..., Path]
FAST = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ncm", {}),
    ("ranpac", {"head": {"strength": 1.0, "projection": 40}}),
    ("seq-lora+ridge", {"head": {"strength": 1e-3, "drift": "none"}, "training": {"adapt": "first"}}),
]
methods = pytest.mark.parametrize(("method", "settings"), METHODS[:2], ids=["ncm", "ranpac"])
ROUNDS = ({"ant": 11, "bee": 12, "cow": 3}, {"dog": 4, "bee": 2})
_memory: dict[str, Tensor] = {}


def learn(path: Path, method: str, settings: dict[str, Any], *rounds: Path, **more: Any) -> Learner:
    learner = Learner.create(path, backbone="random:dinov2-tiny", method=method, image_size=28, settings=settings)
    learner.memory = _memory  # the same picture has the same features, to the last bit, in every state
    for number, data in enumerate(rounds):
        learner.learn(data, task=f"round {number + 1}", training=FAST, **more)
    return learner


def numbers(path: Path) -> dict[str, Tensor]:
    head: Any = Learner.open(path).network.head
    found = (
        {"mean": head.mean}
        if hasattr(head, "mean")
        else {"solution": head.solve(), "gram": head.gram, "cross": head.cross}
    )
    return found | {"total": head.sums.total, "known": head.sums.gram, "count": head.count.double()}


def assert_alike(one: Path, other: Path, tolerance: float = 1e-8) -> None:
    mine, theirs = numbers(one), numbers(other)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], atol=tolerance, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def rows(state: State, index: int) -> list[dict[str, Any]]:
    text = state.text(f"{state.version.record['tasks'][index]['folder']}/pictures.jsonl")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def rounds(picture_folder: Folders) -> list[Path]:
    return [picture_folder(counts, name=f"round{number}", seed=number) for number, counts in enumerate(ROUNDS)]


def other(rounds: list[Path], change: Callable[[Path], Any]) -> list[Path]:
    """Copies of the rounds' folders, changed."""
    copies = [shutil.copytree(each, each.parent / f"other-{each.name}") for each in rounds]
    for each in copies:
        change(each)
    return copies


# --- removing


@methods
def test_a_removed_class_was_never_learned(
    method: str, settings: dict[str, Any], tmp_path: Path, rounds: list[Path], picture_folder: Folders
) -> None:
    learner = learn(tmp_path / "state", method, settings, *rounds, test=rounds[0])
    before = learner.state.version
    assert learner.accuracy_[0][0] is not None
    done = remove_class(State.open(tmp_path / "state"), "bee")
    without = other(rounds, lambda folder: shutil.rmtree(folder / "bee"))
    learn(tmp_path / "never", method, settings, *without)
    assert_alike(tmp_path / "state", tmp_path / "never")

    record = done.version.record
    assert record["note"] == "remove bee"
    assert [(entry["id"], entry["name"]) for entry in record["classes"]] == [(0, "ant"), (2, "cow"), (3, "dog")]
    first, second = record["tasks"]
    assert (first["classes"], first["annotated"], first["images"]) == (["ant", "cow"], ["ant", "cow"], 14)
    assert (second["classes"], second["annotated"], second["images"]) == (["dog"], ["dog"], 4)
    assert (first["validation_images"], first["validation_accuracy"]) == (1, None)
    assert record["accuracy"] == [[None], [None, None]]
    assert "measured" not in second
    assert "1" not in done.remarks[0].split()
    assert "--keep 1` removes them" in done.remarks[-1]

    state = State.open(tmp_path / "state")
    assert {row["label"] for row in rows(state, 0)} == {0, 2}
    gone = {row["sha256"] for row in rows(State(state.path, before), 0) if row["label"] == 1}
    assert gone.isdisjoint(row["sha256"] for index in range(2) for row in rows(state, index))
    assert not [name for name in record["files"] if name.startswith(first["folder"]) and "head" in name]
    assert kept_bytes(state) < sum(e["bytes"] for n, e in before.record["files"].items() if "features" in n)

    again = Learner.open(tmp_path / "state").learn(picture_folder({"bee": 2, "eel": 2}, name="more", seed=5))
    assert [entry["id"] for entry in again.record["classes"]] == [0, 2, 3, 4, 5]
    assert {row["label"] for row in rows(again.state, 2)} == {4, 5}
    assert again.classes_ == ("ant", "cow", "dog", "bee", "eel")
    again.undo()
    again.undo()
    assert again.classes_ == ("ant", "bee", "cow", "dog")
    assert again.record["files"] == before.record["files"]


def test_the_adapter_of_the_first_round_may_still_hold_a_class(tmp_path: Path, rounds: list[Path]) -> None:
    learn(tmp_path / "state", *METHODS[2], *rounds)
    state = State.open(tmp_path / "state")
    assert kept_bytes(state) > 0
    kept = numbers(tmp_path / "state")
    done = remove_class(state, "dog")
    assert not any("adapter was trained" in remark for remark in done.remarks)  # the second round left it alone
    left = numbers(tmp_path / "state")
    dogs = kept["count"][3]
    assert left["count"].tolist() == kept["count"][:3].tolist()
    assert dogs == 4
    done = remove_class(state, "bee")
    assert any("adapter was trained on pictures of 'bee' in round 'round 1'" in remark for remark in done.remarks)
    torch.testing.assert_close(numbers(tmp_path / "state")["total"], kept["total"][[0, 2]], atol=1e-8, rtol=0)


def test_sums_of_features_that_moved_still_hold_a_class(tmp_path: Path, rounds: list[Path]) -> None:
    learn(tmp_path / "state", "seq-lora+ridge", {"head": {"strength": 1e-3}}, *rounds)
    state = State.open(tmp_path / "state")
    assert kept_bytes(state) == 0
    done = remove_class(state, "bee")
    said = " ".join(done.remarks)
    assert "sums that all classes share still hold 'bee': the features have moved" in said
    assert "in round 'round 1', 'round 2'" in said
    assert [each.label for each in Learner.open(tmp_path / "state").predict([rounds[0] / "bee" / "000.png"])] != ["bee"]


def test_features_of_another_network_are_not_kept(tmp_path: Path, rounds: list[Path], picture_folder: Folders) -> None:
    learner = learn(tmp_path / "state", *METHODS[2], *rounds)
    assert sum("features" in name for name in learner.record["files"]) == 2
    learner.learn(picture_folder({"eel": 3}, name="third"), training={"adapt": "always"})
    assert not [name for name in learner.record["files"] if "features" in name]


def test_without_kept_features_the_pictures_are_asked_for(
    tmp_path: Path, rounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_FEATURE_BYTES", 4 * 32 * 10)  # the second round's six fit
    learn(tmp_path / "state", *METHODS[1], *rounds)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    state = State.open(tmp_path / "state")
    assert sum("features" in name for name in state.version.record["files"]) == 1
    before = state.version.id
    with pytest.raises(ConfigError, match=r"12 of 14 pictures of 'bee' have left no features .* --inexact"):
        remove_class(state, "bee")
    some = shutil.copytree(rounds[0] / "bee", tmp_path / "some")
    (some / "000.png").unlink()
    with pytest.raises(ConfigError, match="1 of 14 pictures of 'bee' are not among the --pictures"):
        remove_class(state, "bee", pictures=some)
    assert State.open(tmp_path / "state").version.id == before

    done = remove_class(state, "bee", pictures=rounds[0] / "bee")
    assert not any("still hold 'bee':" in remark and "sums" in remark for remark in done.remarks)
    without = other(rounds, lambda folder: shutil.rmtree(folder / "bee"))
    learn(tmp_path / "never", *METHODS[1], *without)
    mine, theirs = numbers(tmp_path / "state"), numbers(tmp_path / "never")
    torch.testing.assert_close(mine["gram"], theirs["gram"], atol=1e-4, rtol=1e-5)  # computed in other batches
    assert torch.equal(mine["count"], theirs["count"])

    done = remove_class(State.open(tmp_path / "copy"), "bee", inexact=True)
    assert "12 of its pictures were not there to be taken out" in done.remarks[0]


def test_rows_of_other_classes_stay_when_one_goes(tmp_path: Path, rounds: list[Path], picture_folder: Folders) -> None:
    learner = learn(tmp_path / "state", "lora+ewc", {}, *rounds)
    picture = [rounds[0] / "cow" / "000.png"]
    before = learner.network.predict(torch.zeros(1, 28, 28, 3, dtype=torch.uint8))
    done = remove_class(State.open(tmp_path / "state"), "bee")
    assert "rows of the other classes" in done.remarks[0]
    assert any("adapter was trained" in remark for remark in done.remarks)
    after = Learner.open(tmp_path / "state")
    logits = after.network.predict(torch.zeros(1, 28, 28, 3, dtype=torch.uint8))
    torch.testing.assert_close(logits, before[:, [0, 2, 3]])
    _, objective = after._load()
    anchors: Any = objective
    assert anchors.classes == 3
    assert anchors.anchor["head.classifier.weight"].shape[0] == 3
    after.learn(picture_folder({"eel": 3, "ant": 2}, name="third", seed=7))
    assert after.classes_ == ("ant", "cow", "dog", "eel")
    assert len(after.predict(picture)[0].top) == 4


@pytest.mark.parametrize("method", ["color", "dual-lora"])
def test_no_picture_is_taken_for_one_of_a_round_that_lost_its_classes(
    method: str, tmp_path: Path, picture_folder: Folders
) -> None:
    first, second = (picture_folder(names, 3, name=names[0], seed=1) for names in (["ant", "bee"], ["cow", "dog"]))
    learn(tmp_path / "state", method, {}, first, second)
    for name in ("ant", "bee"):
        remove_class(State.open(tmp_path / "state"), name)
    learner = Learner.open(tmp_path / "state")
    found = learner.predict([first, second])
    assert {each.label for each in found} <= {"cow", "dog"}
    assert all(0 <= score <= 1 for each in found for _, score in each.top)
    assert [task["parts"]["adapter"]["meta"]["classes"] for task in learner.record["tasks"]] == [[], [0, 1]]
    learner.learn(picture_folder(["eel"], 3, name="third"))
    merge_classes(learner.state, "eel", "cow")
    learner = Learner.open(tmp_path / "state")
    assert [task["parts"]["adapter"]["meta"]["classes"] for task in learner.record["tasks"]] == [[], [0, 1], [0]]
    assert {each.label for each in learner.predict([first, second])} <= {"cow", "dog"}


# --- merging and relabelling


@methods
def test_merged_classes_always_were_one(
    method: str, settings: dict[str, Any], tmp_path: Path, rounds: list[Path]
) -> None:
    learn(tmp_path / "state", method, settings, *rounds)

    def move(folder: Path) -> None:
        if (folder / "cow").exists():
            for picture in (folder / "cow").iterdir():
                picture.rename(folder / "bee" / f"cow-{picture.name}")
            (folder / "cow").rmdir()

    done = merge_classes(State.open(tmp_path / "state"), "cow", "bee")
    learn(tmp_path / "always", method, settings, *other(rounds, move))
    assert_alike(tmp_path / "state", tmp_path / "always")
    record = done.version.record
    assert (record["note"], done.remarks) == ("merge cow -> bee", ())
    assert [entry["id"] for entry in record["classes"]] == [0, 1, 3]
    assert [task["annotated"] for task in record["tasks"]] == [["ant", "bee"], ["bee", "dog"]]
    assert list_classes(State.open(tmp_path / "state"))[1] == {
        "id": 1,
        "name": "bee",
        "round": "round 1",
        "pictures": 17,
    }


@pytest.mark.parametrize("most", [history.MOST_FEATURE_BYTES, 0], ids=["kept", "computed"])
@methods
def test_relabelled_pictures_were_always_right(
    method: str,
    settings: dict[str, Any],
    most: int,
    tmp_path: Path,
    rounds: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "MOST_FEATURE_BYTES", most)
    learn(tmp_path / "state", method, settings, *rounds)
    wrong = [rounds[0] / "bee" / name for name in ("000.png", "011.png")]
    moved = [picture.rename(tmp_path / f"moved-{picture.name}") for picture in wrong]  # known by their bytes
    done = relabel(State.open(tmp_path / "state"), moved, "ant")
    for picture in moved:
        shutil.copy(picture, rounds[0] / "ant" / picture.name.replace("moved", "was-bee"))
    learn(tmp_path / "always", method, settings, *rounds)
    assert_alike(tmp_path / "state", tmp_path / "always", 1e-8 if most else 1e-3)
    record = done.version.record
    assert record["note"] == "relabel 2 pictures -> ant"
    assert [task["annotated"] for task in record["tasks"]] == [["ant", "bee", "cow"], ["bee", "dog"]]
    assert record["accuracy"][0] == [None]
    assert [entry["pictures"] for entry in list_classes(State.open(tmp_path / "state"))] == [13, 12, 3, 4]
    with pytest.raises(DataError, match="nothing to change"):
        relabel(State.open(tmp_path / "state"), moved, "ant")


def test_relabelling_says_when_nothing_that_predicts_has_changed(tmp_path: Path, rounds: list[Path]) -> None:
    learner = learn(tmp_path / "state", "seq-lora", {}, *rounds)
    weight = learner.network.head.classifier.weight.clone()
    done = relabel(State.open(tmp_path / "state"), [rounds[1] / "dog"], "cow")
    assert "what predicts has not changed" in done.remarks[0]
    assert "no picture of 'dog' is left" in done.remarks[1]
    after = Learner.open(tmp_path / "state")
    assert torch.equal(after.network.head.classifier.weight, weight)
    assert after.record["tasks"][1]["annotated"] == ["bee", "cow"]
    strange = tmp_path / "strange.png"
    strange.write_bytes((rounds[0] / "ant" / "000.png").read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"strange\.png: was never learned"):
        relabel(after.state, [strange], "cow")


# --- names


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
    after.learn(shutil.copytree(rounds[1] / "bee", tmp_path / "more" / "Wasp").parent)
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


@pytest.fixture
def one_round(tmp_path: Path, picture_folder: Folders) -> Path:
    learn(tmp_path / "state", "ncm", {}, picture_folder(["ant", "bee"], 2))
    return tmp_path / "state"


def test_the_last_class_stays_and_an_id_is_never_used_again(one_round: Path, picture_folder: Folders) -> None:
    remove_class(State.open(one_round), "bee")
    with pytest.raises(DataError, match="'ant' is the last class"):
        remove_class(State.open(one_round), "ant")
    Learner.open(one_round).learn(picture_folder(["bee"], 2, name="again"))
    assert [(each["id"], each["name"]) for each in list_classes(State.open(one_round))] == [(0, "ant"), (2, "bee")]


def test_a_state_of_the_first_format_can_be_repaired(tmp_path: Path) -> None:
    """It kept no features; its means hold nothing that classes share."""
    old = shutil.copytree(Path(__file__).parent / "state" / "fixtures" / "format1" / "ncm", tmp_path / "old")
    names = [each["name"] for each in list_classes(State.open(old))]
    means = numbers(old)["mean"]
    remove_class(State.open(old), names[0])
    assert torch.equal(numbers(old)["mean"], means[1:])
    assert list(Learner.open(old).classes_) == names[1:]


def test_a_half_learned_round_hinders_a_new_name_and_goes_with_its_ground(one_round: Path) -> None:
    state = State.open(one_round)
    state.training.begin({"task": "half"})
    with pytest.raises(ConfigError, match="'half' is half learned"):
        rename_class(state, "ant", "eel")
    done = remove_class(state, "ant")
    assert "'half', which was half learned, has been dropped" in done.remarks[-1]
    assert state.training.plan() is None


# --- masks


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
    assert after.record["accuracy"][1][0] is None
    assert after.record["accuracy"][1][1] is not None
    assert [entry["pictures"] for entry in list_classes(after.state)] == [None] * 3
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
