"""What a benchmark measures beside accuracy: pictures of classes still to come, taken for known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.bench import Run, runner
from sapwood.bench.columns import notes
from sapwood.bench.outcomes import false_accept
from sapwood.bench.summary import summarise
from sapwood.bench.tables import markdown
from sapwood.data.sources import read_data
from sapwood.data.streams import Round, Stream
from sapwood.learner import Learner

from .helpers import row

PAIRS = (("ant", "bee"), ("cow", "dog"), ("elk", "fox"))


@pytest.fixture
def stream(picture_folder: Callable[..., Path]) -> Stream:
    parts = []
    for names in PAIRS:
        train = read_data(picture_folder(names, 14, name=f"train-{names[0]}"))
        test = read_data(picture_folder(names, 4, name=f"test-{names[0]}", seed=1))
        parts.append(Round("+".join(names), train, test))
    return Stream("animals", tuple(parts), tuple(name for pair in PAIRS for name in pair), None)


@pytest.mark.parametrize("method", ["ncm", "joint"])
def test_mean_over_the_rounds_but_the_last(
    method: str, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def listening(learner: Learner, given: Stream) -> float | None:
        seen.append((len(learner.classes_), false_accept(learner, given)))
        return seen[-1][1]

    monkeypatch.setattr(runner, "false_accept", listening)
    settings = {"training": {"epochs": 1, "validation": 0.45}}
    found = runner.run(stream, Run(method, "random:dinov2-tiny", 0, 28, settings=settings), tmp_path / "row.json")
    assert [count for count, _ in seen] == [2, 4, 6]
    (_, first), (_, second), (_, last) = seen
    assert last is None
    if method == "joint":  # after its first round 12 were held out: too few to say
        assert (first, found["false_accept"]) == (None, None)
        assert second is not None
    else:
        assert found["false_accept"] == pytest.approx((first + second) / 2)


def test_in_the_table() -> None:
    lines = summarise([row("ncm", seed, false_accept=0.25) for seed in (0, 1)])
    assert "unknown taken for known" in markdown(lines)
    assert "25.0 ± 0.0" in markdown(lines)
    assert any(note.startswith("Unknown taken for known: ") for note in notes(lines))
    without = summarise([row("ncm", false_accept=None)])
    assert not any(note.startswith("Unknown taken for known: ") for note in notes(without))
