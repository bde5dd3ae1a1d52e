"""``sapwood demo`` with a small backbone; the whole of it is what ``make demo`` runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sapwood.cli import trying
from sapwood.data.demo import animal_mnist
from sapwood.errors import BackboneError

from .conftest import Run


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "_BACKBONE", "random:dinov2-tiny")
    monkeypatch.setattr(trying, "_IMAGE_SIZE", 28)
    monkeypatch.setattr(trying, "_TESTS", 2)
    try:
        animal_mnist()
    except BackboneError as error:
        pytest.skip(f"animal-mnist cannot be had: {error}")


@pytest.mark.usefixtures("small")
def test_demo(sapwood: Run, tmp_path: Path) -> None:
    out = tmp_path / "my demo"
    done = sapwood("demo", "--out", out, "--per-class", "3")
    assert done.code == 0, done.err
    assert sorted(path.name for path in out.iterdir()) == ["model", "report.html", "round1", "round2", "test", "test1"]
    assert f"The report lies in {out / 'report.html'}" in done.out
    assert "after round2" in done.out

    lines = [shlex.split(line[2:]) for line in done.out.splitlines() if line.startswith("$ ")]
    assert [line[:2] for line in lines] == [
        ["sapwood", name] for name in ("learn", "learn", "predict", "evaluate", "report")
    ]
    for line in lines:
        by_hand = [word.replace("/model", "/by-hand").replace("report.html", "by-hand.html") for word in line[1:]]
        assert sapwood(*by_hand).code == 0
    facts = [sapwood("show", out / name, "--json").json for name in ("model", "by-hand")]
    assert facts[0]["accuracy"] == facts[1]["accuracy"]
    assert [len(row) for row in facts[0]["accuracy"]] == [1, 2]
    assert facts[0]["accuracy_on"] == ["test", "test"]
    assert len(facts[0]["classes"]) == 10

    again = sapwood("demo", "--out", out, "--per-class", "3")
    assert again.out.count("(done by an earlier run)") == 2
    assert sapwood("show", out / "model", "--json").json == facts[0]
    other = sapwood("demo", "--out", out, "--per-class", "4")
    assert other.code == 2
    assert "learned from other pictures" in other.err
