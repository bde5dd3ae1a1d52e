"""A row says which code computed it, that of other packages too, and nothing is taken over from another state of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sapwood.adapters import ADAPTERS
from sapwood.bench import Run, runner
from sapwood.bench.origins import code_of, others, sources_sha256, states_of_code
from sapwood.bench.sharing import Sharing
from sapwood.data.sources import read_data
from sapwood.data.streams import Round, Stream
from sapwood.errors import Interrupted
from sapwood.methods import Method, find_method
from sapwood.progress import Progress
from sapwood.registry import Origin, Registry

WANTED = Run("seq-lora", "random:dinov2-tiny", 0, 28, settings={"training": {"epochs": 1, "precision": "fp32"}})


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with an adapter of its own."""
    folder = tmp_path / "elsewhere"
    (folder / "away_parts").mkdir(parents=True)
    (folder / "away_parts/__init__.py").write_text("")
    (folder / "away_parts/shift.py").write_text("from sapwood.adapters.lora import Lora\nclass Away(Lora): pass\n")
    info = folder / "away_parts-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: away-parts\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[sapwood.adapters]\naway = away_parts.shift:Away\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [each for each in sys.modules if each.startswith("away_parts")]:
        del sys.modules[name]


@pytest.fixture
def stream(picture_folder: Callable[..., Path]) -> Stream:
    rounds = []
    for index, names in enumerate((["ant", "bee"], ["cat", "dog"])):
        pictures = read_data(picture_folder(names, 6, name=str(index)))
        rounds.append(Round(str(index), pictures, pictures))
    return Stream("letters", tuple(rounds), ("ant", "bee", "cat", "dog"), None)


def test_the_package_of_an_entry(elsewhere: Path) -> None:
    registry: Registry[Any] = Registry("adapter", "adapters")
    registry.add("lora", ADAPTERS["lora"])
    assert registry.origin("lora") == Origin("sapwood")
    assert registry.origin("away") == Origin("away_parts", ("away-parts", "1.2"))


def test_sources_of_other_packages_count(
    elsewhere: Path, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry: Registry[Any] = Registry("adapter", "adapters")
    monkeypatch.setattr("sapwood.bench.origins.ADAPTERS", registry)
    method = Method("away", "away", "finetune", "linear", "")
    assert [each.package for each in others(method, WANTED.backbone)] == ["away_parts"]
    before = code_of(method, WANTED.backbone)
    assert list(before) == ["sapwood", "away_parts"]
    monkeypatch.setattr("sapwood.bench.sharing.code_of", lambda *_: code_of(method, WANTED.backbone))
    sharing = Sharing(tmp_path / "trained", stream, WANTED, tmp_path / "work")
    (elsewhere / "away_parts/deep.py").write_text("WIDTH = 3\n")
    sources_sha256.cache_clear()
    after = code_of(method, WANTED.backbone)
    assert before["sapwood"] == after["sapwood"]
    assert before["away_parts"] != after["away_parts"]
    again = Sharing(tmp_path / "trained", stream, WANTED, tmp_path / "work")
    assert sharing._features() != again._features()
    assert states_of_code([{"code": before}, {"code": after}]) == {"away_parts": 2}
    assert states_of_code([{"code": after}, {"code": {"sapwood": after["sapwood"]}}]) == {}, "it has no such part"


def test_states_of_rows_of_earlier_releases() -> None:
    rows = [{"code_sha256": "a"}, {"code": {"sapwood": "b"}, "earlier_code": [{"sapwood": "c"}]}]
    assert states_of_code(rows) == {"sapwood": 3}


def test_a_row_that_was_gone_on_with_by_other_code_says_so(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Progress):
        def __init__(self, trained: int) -> None:
            self.left = trained

        def start(self, what: str, total: int, done: int = 0) -> None:
            self.left -= what == "training"
            if self.left < 0:
                raise Interrupted("in the second round")

    monkeypatch.setattr(runner, "code_of", lambda *_: {"sapwood": "one"})
    with pytest.raises(Interrupted):
        runner.run(stream, WANTED, tmp_path / "row.json", progress=Cut(1))
    monkeypatch.setattr(runner, "code_of", lambda *_: {"sapwood": "two"})
    with pytest.raises(Interrupted):
        runner.run(stream, WANTED, tmp_path / "row.json", progress=Cut(0))
    monkeypatch.undo()
    row = runner.run(stream, WANTED, tmp_path / "row.json")
    assert row["resumed"]
    assert row["earlier_code"] == [{"sapwood": "one"}, {"sapwood": "two"}]
    assert row["code"] == code_of(find_method("seq-lora"), WANTED.backbone)
    fresh = runner.run(stream, WANTED, tmp_path / "fresh.json")
    assert (fresh["resumed"], fresh["earlier_code"]) == (False, [])
    assert fresh["round_names"] == ["0", "1"]
