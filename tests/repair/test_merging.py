"""Classes that become one, and pictures that get another label: as if they had always been right."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sapwood import history
from sapwood.errors import DataError
from sapwood.learner import Learner
from sapwood.repair import list_classes, merge_classes, relabel
from sapwood.state import State

from .helpers import assert_alike, learn, methods, other

NOTE = "pictures to learn or to measure on must be of class 'bee' from now on"


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
    assert (record["note"], done.remarks) == ("merge cow -> bee", (NOTE,))
    assert [entry["id"] for entry in record["classes"]] == [0, 1, 3]
    assert [task["annotated"] for task in record["tasks"]] == [["ant", "bee"], ["bee", "dog"]]
    assert list_classes(State.open(tmp_path / "state"))[1] == {
        "id": 1,
        "name": "bee",
        "round": "round 1",
        "pictures": 17,
        "was": ["cow"],
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


def test_a_class_may_lose_its_last_picture_to_another(tmp_path: Path, rounds: list[Path]) -> None:
    learn(tmp_path / "state", "seq-lora", {}, *rounds)
    done = relabel(State.open(tmp_path / "state"), [rounds[1] / "dog"], "cow")
    assert "no picture of 'dog' is left" in done.remarks[-1]
    after = Learner.open(tmp_path / "state")
    assert {each.label for each in after.predict([rounds[1] / "dog"])} == {"cow"}
    assert after.record["tasks"][1]["annotated"] == ["bee", "cow"]
    assert after.network.head.known.count[3] == 0
    strange = tmp_path / "strange.png"
    strange.write_bytes((rounds[0] / "ant" / "000.png").read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"strange\.png: was never learned"):
        relabel(after.state, [strange], "cow")
