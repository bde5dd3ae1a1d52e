"""benchmarks/heads.py in miniature: what it reads off one state is what the other methods learn by themselves."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sapwood import Learner
from sapwood.data.sources import read_data

TRAINING = {"epochs": 2, "lr": 5e-3, "batch_size": 8, "precision": "fp32"}
SAME = {"own": "seq-lora", "slca": "seq-lora+slca", "ridge, drift": "seq-lora+ridge"}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
        yield importlib.import_module("heads")


def test_heads_read_off_what_they_would_have_learned(
    benchmark: ModuleType, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    names = (["ant", "bee"], ["cat", "dog"])
    so_far = (names[0], names[0] + names[1])
    rounds = [read_data(picture_folder(each, 12, name=each[0])) for each in names]
    tests = [read_data(picture_folder(each, 10, name=f"test{len(each)}", seed=9)) for each in so_far]
    learned: dict[str, list[float]] = {}
    for name, method in SAME.items():
        learner = Learner.create(tmp_path / method, backbone="random:dinov2-tiny", method=method, image_size=28)
        learned[name] = [
            learner.learn(part, training=TRAINING).evaluate(test).accuracy
            for part, test in zip(rounds, tests, strict=True)
        ]
    found = benchmark.replay(Learner.open(tmp_path / "seq-lora"), rounds, tests)
    assert {name: found[name] for name in SAME} == {name: pytest.approx(each) for name, each in learned.items()}
    assert len({tuple(each) for each in found.values()}) > 3
