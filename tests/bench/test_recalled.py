"""Features that runs remember are those of the network as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sapwood import evaluation, passing
from sapwood.bench import Run, runner
from sapwood.data.sources import read_data
from sapwood.data.streams import Round, Stream
from sapwood.learner import Learner
from sapwood.methods import METHODS
from sapwood.progress import Progress

NAMES = (["ant", "bee"], ["cat", "dog"])
TRAINING = {"epochs": 1, "lr": 5e-2, "batch_size": 8, "precision": "fp32"}
NAMED = [name for name in METHODS if METHODS[name].kind == "classification" and not METHODS[name].all_data]
OF_EACH_ADAPTER = {METHODS[name].adapter: name for name in NAMED if "clora" not in name}.values()


@pytest.fixture
def stream(picture_folder: Callable[..., Path]) -> Stream:
    """Two rounds of two classes."""
    parts = [
        Round(each[0], *(read_data(picture_folder(each, count, name=f"{each[0]}-{count}")) for count in (6, 3)))
        for each in NAMES
    ]
    return Stream("letters", tuple(parts), ("ant", "bee", "cat", "dog"), None)


class Counting(Progress):
    """How many pictures went through the network to be named."""

    def __init__(self) -> None:
        self.named = 0

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.named += total if what == "predicting" else 0


@pytest.mark.parametrize("name", OF_EACH_ADAPTER)
def test_what_is_remembered_is_what_would_be_computed(name: str, stream: Stream, tmp_path: Path) -> None:
    found = {}
    for memory in (None, dict[str, torch.Tensor]()):
        run = Run(name, "random:dinov2-tiny", 0, 28, settings={"training": TRAINING})
        learner = runner.open_learner(tmp_path / str(memory is None), stream.kind, run, memory)
        scores = []
        for index, part in enumerate(stream.rounds):
            learner.learn(part.train, task=part.name, test=stream.tests(index))
            store = learner.kind.load(stream.tests(1), 28, Progress(), skip_bad=False)
            counting = Counting()
            for _ in range(2):  # after every round twice: remembered, and not what an earlier round remembered
                seen = evaluation.look(learner.network, store, 28, counting, top=99, known=False)
                scores.append(torch.zeros_like(seen.scores).scatter(1, seen.classes, seen.scores))
            if memory and name not in ("dual-lora", "color++"):  # what these say follows from more
                assert counting.named < 2 * len(store)
        found[memory is None] = learner.accuracy_, scores
    assert found[True][0] == found[False][0]
    for one, other in zip(found[True][1], found[False][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_network_is_known_by_what_it_computes(stream: Stream, tmp_path: Path) -> None:
    def opened(at: str, **settings: dict[str, str]) -> Learner:
        run = Run("seq-lora+ridge", "random:dinov2-tiny", 0, 28, settings={"training": TRAINING, **settings})
        return runner.open_learner(tmp_path / at, stream.kind, run, None)

    learner = opened("one")
    prints = [learner.network.fingerprint()]
    for part in stream.rounds:
        learner.learn(part.train, task=part.name)
        prints.append(learner.network.fingerprint())
        assert Learner.open(learner.state.path).network.fingerprint() == prints[-1]
    assert len(set(prints)) == 3
    merged = Learner.open(learner.state.path).merge()
    assert merged.network.fingerprint() not in prints, "the last bits differ"
    assert opened("two").network.fingerprint() == prints[0]
    assert opened("three", head={"blocks": "all"}).network.fingerprint() != prints[0]


def test_another_head_looks_at_no_test_picture_again(stream: Stream, tmp_path: Path) -> None:
    said = {}
    for at, name, trained in (("a", "seq-lora", "t"), ("b", "seq-lora+ridge", "t"), ("c", "seq-lora+ridge", None)):
        run = Run(name, "random:dinov2-tiny", 0, 28, settings={"training": TRAINING})
        counting, folder = Counting(), tmp_path / at
        folder.mkdir()
        place = trained and tmp_path / trained
        row = runner.run(stream, run, folder / "row.json", progress=counting, memory={}, trained=place)
        said[at] = counting.named, row["accuracy"], row["correct"], row["false_accept"]
    assert said["b"][1:] == said["c"][1:]
    assert said["b"][0] == 0 < said["c"][0]


def test_a_round_that_comes_twice_is_learned_twice(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A bench learns what its rounds bring: they must not shrink where two share pictures."""
    part = [read_data(picture_folder(NAMES[0], count, name=str(count))) for count in (6, 3)]
    twice = Stream("twice", (Round("day", *part), Round("dusk", *part)), tuple(NAMES[0]), None, domains=True)
    run = Run("ncm", "random:dinov2-tiny", 0, 28, settings={"training": TRAINING})
    runner.run(twice, run, tmp_path / "row.json", memory={})
    row = json.loads((tmp_path / "row.json").read_text("utf-8"))
    assert len(row["accuracy"]) == 2


def test_memory_of_what_moves_is_bounded(stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "MEMORY", 0)
    memory: dict[str, torch.Tensor] = {}
    run = Run("seq-lora", "random:dinov2-tiny", 0, 28, settings={"training": TRAINING})
    learner = runner.open_learner(tmp_path / "state", stream.kind, run, memory)
    learner.learn(stream.rounds[0].train, test=stream.tests(0))
    assert memory == {}
