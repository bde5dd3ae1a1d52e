"""Rows that differ in their heads alone train once; all else is as if each had trained for itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sapwood import training
from sapwood.bench import Run, runner
from sapwood.bench.plan import Plan
from sapwood.bench.sharing import Sharing, order_of_work
from sapwood.data.sources import read_data
from sapwood.data.streams import Round, Stream
from sapwood.learner import Learner

from .helpers import Result, rows_in

NAMES = (["ant", "bee"], ["cat", "dog"], ["elk", "fox"])
SETTINGS = {"training": {"epochs": 2, "lr": 5e-3, "batch_size": 8, "precision": "fp32"}}
# An adapter that stays as it is, one that looks at pictures and folds, one that grows, and all weights.
READ_BY = (("seq-lora", "ridge"), ("inflora", "slca"), ("color", "slca"), ("full-finetune", "slca"))


@pytest.fixture
def stream(picture_folder: Callable[..., Path]) -> Stream:
    """Three rounds of two classes."""
    parts = [
        Round(each[0], *(read_data(picture_folder(each, count, name=f"{each[0]}-{count}")) for count in (10, 4)))
        for each in NAMES
    ]
    return Stream("letters", tuple(parts), tuple(name for each in NAMES for name in each), None)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a training step."""
    made: list[int] = []
    step = training._step

    def counted(*given: Any) -> float:
        made.append(1)
        return step(*given)

    monkeypatch.setattr(training, "_step", counted)
    return made


def wanted(method: str, **changed: Any) -> Run:
    return Run(method, "random:dinov2-tiny", 0, 28, settings=SETTINGS, **changed)


def learned(stream: Stream, run: Run, work: Path, shared: Path | None) -> tuple[Learner, bool]:
    """The state of a run after all rounds, and whether it took something over."""
    work.mkdir()
    sharing = None if shared is None else Sharing(shared, stream, run, work)
    runner._in_sequence(stream, run, work, runner.Progress(), None, sharing)
    return Learner.open(work / "state"), sharing is not None and sharing.took_over


def tensors(learner: Learner) -> dict[str, torch.Tensor]:
    """Of all rounds."""
    files = [name for name in learner.record["files"] if name.endswith(".safetensors")]
    return {f"{name}/{key}": value for name in files for key, value in learner.state.tensors(name).items()}


@pytest.mark.parametrize(("method", "head"), READ_BY)
def test_what_is_taken_over_is_what_would_have_been_trained(
    method: str, head: str, stream: Stream, steps: list[int], tmp_path: Path
) -> None:
    donor, took = learned(stream, wanted(method), tmp_path / "donor", tmp_path / "trained")
    spent = len(steps)
    assert (took, spent > 0) == (False, True)
    run = wanted(f"{method}+{head}")
    shared, took = learned(stream, run, tmp_path / "shared", tmp_path / "trained")
    assert (took, len(steps)) == (True, spent)
    alone, took = learned(stream, run, tmp_path / "alone", None)
    assert (took, len(steps)) == (False, 2 * spent)

    own, other = tensors(alone), tensors(shared)
    assert own.keys() == other.keys()
    assert [name for name, value in own.items() if not torch.equal(value, other[name])] == []
    assert alone.accuracy_ == shared.accuracy_
    for one, two in zip(alone.record["tasks"], shared.record["tasks"], strict=True):
        assert one["train_gmacs"] == two["train_gmacs"] > 0
        assert one["trainable_parameters"] == two["trainable_parameters"]
    rows = [each.network.head.classifier.weight for each in (donor, shared)]
    assert torch.equal(*rows) == (head == "ridge")  # aligned rows are each run's own


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (wanted("lora+lwf"), wanted("lora+lwf+ridge")),  # distils what the old rows say
        (wanted("seq-lora"), wanted("seq-lora", head="cosine")),  # trains a scale beside its rows
        (wanted("seq-lora"), wanted("c-lora+ridge")),
        (wanted("seq-lora"), Run("seq-lora+ridge", "random:dinov2-tiny", 1, 28, settings=SETTINGS)),
    ],
)
def test_what_depends_on_more_than_the_head_trains_anew(
    first: Run, second: Run, stream: Stream, steps: list[int], tmp_path: Path
) -> None:
    learned(stream, first, tmp_path / "first", tmp_path / "trained")
    spent = len(steps)
    assert not learned(stream, second, tmp_path / "second", tmp_path / "trained")[1]
    assert len(steps) == 2 * spent


def test_rounds_with_known_classes_are_not_shared(
    picture_folder: Callable[..., Path], steps: list[int], tmp_path: Path
) -> None:
    parts = [
        Round(name, *(read_data(picture_folder(NAMES[0], 12, name=f"{name}-{part}", seed=seed)) for part in "ab"))
        for seed, name in enumerate(("day", "dusk"))
    ]
    weather = Stream("weather", tuple(parts), tuple(NAMES[0]), None, domains=True)
    learned(weather, wanted("seq-lora"), tmp_path / "first", tmp_path / "trained")
    spent = len(steps)
    assert learned(weather, wanted("seq-lora+slca"), tmp_path / "second", tmp_path / "trained")[1]
    assert spent < len(steps) < 2 * spent  # the first round was new, and is shared


def test_once_a_class_came_again_nothing_more_is_shared(
    picture_folder: Callable[..., Path], stream: Stream, steps: list[int], tmp_path: Path
) -> None:
    """Rows of old classes are each run's own, and that round trains them: what follows differs too."""
    again = read_data(picture_folder(["bee", "gnu"], 10, name="again", seed=3))
    rounds = (stream.rounds[0], Round("again", again, stream.rounds[0].test), *stream.rounds[1:])
    mixed = Stream("mixed", rounds, (*stream.classes[:2], "gnu", *stream.classes[2:]), None)
    learned(mixed, wanted("seq-lora+slca"), tmp_path / "first", tmp_path / "trained")
    spent = len(steps)
    assert learned(mixed, wanted("seq-lora"), tmp_path / "second", tmp_path / "trained")[1]
    assert len(steps) == spent + spent * 3 // 4  # all but the first round


def test_where_nothing_can_be_put_each_trains_for_itself(stream: Stream, steps: list[int], tmp_path: Path) -> None:
    (tmp_path / "trained").write_text("a file")
    for name in ("seq-lora", "seq-lora+ridge"):
        assert not learned(stream, wanted(name), tmp_path / name, tmp_path / "trained")[1]
    assert len(steps) % 2 == 0


def test_what_else_the_bits_follow_from(stream: Stream, steps: list[int], tmp_path: Path) -> None:
    learned(stream, wanted("seq-lora"), tmp_path / "first", tmp_path / "trained")
    shelves = [json.loads(file.read_text()) for file in (tmp_path / "trained").glob("*/plan.json")]
    assert sorted(len(facts["rounds"]) for facts in shelves) == [1, 2, 3]
    for facts in shelves:
        assert facts["precision"] == "fp32"
        assert facts["attention"] in ("sdpa", "eager")
        assert (facts["threads"], facts["torch"]) == (torch.get_num_threads(), torch.__version__)


def test_other_pictures_are_other_trainings(
    stream: Stream, picture_folder: Callable[..., Path], steps: list[int], tmp_path: Path
) -> None:
    learned(stream, wanted("seq-lora"), tmp_path / "first", tmp_path / "trained")
    spent = len(steps)
    other = read_data(picture_folder(NAMES[2], 12, name="other", seed=7))
    last = Round("elk", other, stream.rounds[2].test)
    changed = Stream("letters", (*stream.rounds[:2], last), stream.classes, None)
    assert not learned(changed, wanted("seq-lora+ridge"), tmp_path / "second", tmp_path / "trained")[1]
    assert len(steps) == 2 * spent


def test_a_bench_shares_and_says_so(
    own: str, bench: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--seeds", "1", "--epochs", "1", "--no-controls")
    assert bench(tmp_path / "one", "--methods", "seq-lora+ridge,ncm,seq-lora,seq-lora+slca", *options).code == 0
    assert not (tmp_path / "one" / "trained").exists()
    rows = json.loads((tmp_path / "one" / "results.json").read_text())
    assert {row["method"]: (row["took_over"], row["timing_valid"], row["peak_memory"] is None) for row in rows} == {
        "seq-lora+ridge": (False, True, False),
        "ncm": (False, True, False),
        "seq-lora": (True, False, True),
        "seq-lora+slca": (True, False, True),
    }
    assert "took over the training of a row" in (tmp_path / "one" / "table.md").read_text()
    assert bench(tmp_path / "other", "--methods", "seq-lora+slca", *options).code == 0
    name = "seq-lora+slca-random-seed0"
    shared, alone = (rows_in(tmp_path / out)[name] for out in ("one", "other"))
    assert shared | {"took_over": False} == alone


def test_those_that_take_over_come_last_of_their_seed(tmp_path: Path) -> None:
    plan = Plan(
        "split-cifar10-5x2",
        ("seq-lora+ridge", "seq-lora", "c-lora", "lora+lwf"),
        seeds=2,
        image_size=84,
        controls=False,
    )
    order = order_of_work({name: row.run for name, row in plan.rows().items()}, plan.kind)
    one = ["seq-lora+ridge", "c-lora", "lora+lwf", "seq-lora"]
    assert order == [f"{method}-pretrained-seed{seed}" for seed in (0, 1) for method in one]
