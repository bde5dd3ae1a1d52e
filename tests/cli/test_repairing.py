"""``sapwood classes`` and ``sapwood relabel``."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run, World, tree


def test_classes_are_listed_with_what_is_kept_of_them(sapwood: Run, read_only_world: World) -> None:
    listed = sapwood("classes", read_only_world.state)
    assert [line.split() for line in listed.out.splitlines()[:4]] == [
        ["id", "class", "round", "pictures"],
        ["0", "ant", "insects", "16"],
        ["1", "bee", "insects", "12"],
        ["2", "cow", "task-2", "12"],
    ]
    assert "of features are kept" in listed.out
    found = sapwood("classes", read_only_world.state, "--json").json
    assert found["classes"][2] == {"id": 2, "name": "cow", "round": "task-2", "pictures": 12}
    assert found["features_bytes"] > 40 * 4 * 32


def test_a_wrong_label_of_an_earlier_round_is_put_right(sapwood: Run, world: World) -> None:
    """The whole path: rename, relabel, merge, remove; each says where the state is, and each can be undone."""
    said = sapwood("classes", world.state, "rename", "cow", "ox")
    assert (said.code, said.out.split(" is now ")[1].split(", ")[1]) == (0, "rename cow -> ox\n")
    picture = world.first / "bee" / "00.png"
    assert sapwood("predict", world.state, picture, "--json").json["predictions"][0]["class"] == "bee"
    done = sapwood("relabel", world.state, picture, "--to", "ox", "--json").json
    assert done["note"] == "relabel 1 picture -> ox"
    assert [entry["pictures"] for entry in done["classes"]] == [16, 11, 13]
    assert sapwood("classes", world.state, "merge", "bee", "ant").code == 0
    gone = sapwood("classes", world.state, "remove", "ox")
    assert "remove ox" in gone.out
    assert "earlier versions still hold 'ox'" in gone.err
    assert [entry["name"] for entry in sapwood("classes", world.state, "--json").json["classes"]] == ["ant"]
    assert sapwood("show", world.state).code == sapwood("predict", world.state, picture).code == 0
    assert sapwood("report", world.state, "-o", world.state.parent / "report.html").code == 0
    for _ in range(4):
        assert sapwood("undo", world.state).code == 0
    assert [entry["pictures"] for entry in sapwood("classes", world.state, "--json").json["classes"]] == [16, 12, 12]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("rename", "ant"), "sapwood classes STATE rename OLD NEW; got 1"),
        (("rename", "ant", "bee"), "merge"),
        (("drop", "ant"), "rename, merge, remove"),
        (("rename", "ant", "x", "--inexact"), "--inexact: only for"),
        (("remove", "dog"), "no class 'dog' is known"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    words: tuple[str, ...], told: str, sapwood: Run, read_only_world: World
) -> None:
    before = tree(read_only_world.state)
    result = sapwood("classes", read_only_world.state, *words)
    assert result.code == 2
    assert told in result.err
    assert result.err.count("\n") == 1
    assert tree(read_only_world.state) == before


def test_a_picture_that_was_never_learned_is_named(sapwood: Run, read_only_world: World) -> None:
    strange: Path = read_only_world.test / "ant" / "00.png"
    result = sapwood("relabel", read_only_world.state, strange, "--to", "bee")
    assert result.code == 2
    assert f"{strange}: was never learned" in result.err
