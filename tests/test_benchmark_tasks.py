"""benchmarks/tasks.py in miniature: bytes against formulas, operations that do not grow, its ratios and its table."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save

BACKBONE, SIZE, WIDTH, BLOCKS, TOKENS, BATCH = "random:dinov2-tiny", 28, 32, 2, 5, 2
SITES = 2 * BLOCKS  # two projections of each block, which see the same input
ROUNDS = (1, 2, 4)
FLOAT = 4
DIRECTIONS, CENTRES = 7, 5
PARTS = {"inflora": "kv", "dual-lora": "kv"}
RANKS = {"clora": 16, "c-lora": 16, "inflora": 10, "o-lora": 16, "sd-lora": 10, "dual-lora": 10, "color": 16}
OPTIONS = argparse.Namespace(tasks="1,2", turns=2, backbone=BACKBONE, image_size=SIZE, batch=BATCH)


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
        yield importlib.import_module("tasks")


@pytest.fixture(scope="module")
def grown(benchmark: ModuleType) -> dict[str, Any]:
    shape = {"backbone": BACKBONE, "size": SIZE, "classes": ROUNDS[-1]}
    return {method: benchmark.grow(method, ROUNDS, **shape) for method in benchmark.METHODS}


def pair(method: str) -> int:
    """Bytes of a pair of factors at every site."""
    return FLOAT * SITES * RANKS[method] * (WIDTH + WIDTH)


def factors(method: str, *names: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the factors in a round's file."""
    sites = [f"block_{block}_{part}" for block in range(BLOCKS) for part in PARTS.get(method, "qv")]
    rank = RANKS[method]
    return {f"{name}.{site}": (rank, WIDTH) if "down" in name else (WIDTH, rank) for name in names for site in sites}


def file_of(method: str, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what a round stores."""
    layers = [f"block_{block}_attn" for block in range(BLOCKS)]
    if method == "inflora":
        own = {f"down_{layer}": (RANKS[method], WIDTH) for layer in layers}
        taken = (WIDTH, DIRECTIONS - (index == 0))
        return own | factors(method, "up") | {f"directions_{layer}": taken for layer in layers}
    if method == "dual-lora":
        own = {f"basis.layer_{layer}": (WIDTH, DIRECTIONS) for layer in layers}
        own |= {f"mean.layer_{layer}": () for layer in layers}
        return own | factors(method, "down", "up", *(("residual_down", "residual_up") if index else ()))
    more: dict[str, dict[str, tuple[int, ...]]] = {
        "c-lora": dict.fromkeys(("old", "last"), (SITES, RANKS[method], RANKS[method])),
        "sd-lora": {"weights": (SITES,), "magnitudes": (index + 1,)},
        "color": {"centres": (CENTRES, WIDTH)},
    }
    return factors(method, "down", "up") | more.get(method, {})


@pytest.mark.parametrize("method", RANKS)
def test_stored_bytes_are_the_tensors_and_their_header(method: str, grown: dict[str, Any]) -> None:
    files = [
        len(save({name: torch.zeros(shape) for name, shape in file_of(method, index).items()}))
        for index in range(ROUNDS[-1])
    ]
    assert grown[method].stored == files
    for rounds in ROUNDS:
        kept = files[rounds - 1 : rounds] if method in ("clora", "c-lora") else files[:rounds]
        assert grown[method].stored_in_all(rounds) == sum(kept)


@pytest.mark.parametrize("method", RANKS)
def test_resident_bytes(method: str, grown: dict[str, Any]) -> None:
    one, rank = pair(method), RANKS[method]
    for rounds, found in enumerate(grown[method].resident, start=1):
        # A method that stores every round keeps the last one's file at hand; after the first it is the past itself.
        last = one if rounds > 1 else 0
        vectors = WIDTH * DIRECTIONS * rounds
        # InfLoRA, float64: the protected directions (of seven equal ones the first round takes six, which hold less
        # than 95 %, later ones what it takes to hold more), or the free ones once these are fewer.
        bases = BLOCKS * 8 * min(vectors - WIDTH, WIDTH * WIDTH - vectors + WIDTH)
        taken = FLOAT * BLOCKS * WIDTH * (DIRECTIONS - (rounds == 1))
        inner = FLOAT * BLOCKS * rank * WIDTH * 3  # one A a layer, two sites' B
        memory = FLOAT * BLOCKS * (vectors + DIRECTIONS * rounds * rounds)  # basis, weights
        recalled = BLOCKS * DIRECTIONS * (rounds - 1) * (8 + FLOAT * 2 * WIDTH)  # gate, what either site makes of it
        live = FLOAT * BLOCKS * WIDTH * DIRECTIONS if rounds > 1 else 0
        snapshots = (2 * rounds - 1) * one + FLOAT * BLOCKS * (vectors + rounds)
        expected = {
            "clora": one,
            "c-lora": one + 3 * FLOAT * SITES * rank * rank,
            "inflora": 2 * inner + FLOAT * SITES * WIDTH * WIDTH + bases + taken,
            "o-lora": (rounds + 1) * one + last,
            # An int64 for every inner index, weights and what lies inside, a magnitude; the file's own.
            "sd-lora": (rounds + 1) * one
            + last
            + rounds * (8 * rank + 2 * FLOAT * SITES + FLOAT)
            + FLOAT * (1 + SITES + rounds),
            "dual-lora": 2 * one + memory + recalled + live + snapshots + rounds * rounds,
            "color": rounds * one + CENTRES * rounds * (FLOAT * WIDTH + 8),
        }
        assert found == expected[method], rounds


@pytest.mark.parametrize("method", RANKS)
def test_second_weights_do_not_grow(method: str, grown: dict[str, Any]) -> None:
    folds = method not in ("clora", "c-lora", "color")
    assert grown[method].beside == [FLOAT * SITES * WIDTH * WIDTH * folds] * ROUNDS[-1]


def steps(benchmark: ModuleType, grown: Any) -> list[float]:
    """Multiply-accumulates of a training step by T."""
    images, targets = benchmark.pictures(BATCH, SIZE, seed=0), torch.arange(BATCH)
    calls = [benchmark.step_of(each, images, targets, grown.training) for each in grown.learning.values()]
    return [benchmark.gmacs(call) * 1e9 for call in calls]


def predictions(benchmark: ModuleType, networks: dict[int, Any]) -> list[float]:
    images = benchmark.pictures(BATCH, SIZE, seed=0)
    return [benchmark.gmacs(benchmark.prediction_of(each, images)) * 1e9 for each in networks.values()]


def test_steps_of_one_pair_do_not_grow(benchmark: ModuleType, grown: dict[str, Any]) -> None:
    for method in ("clora", "inflora", "color"):
        first, *later = steps(benchmark, grown[method])
        assert later == pytest.approx([first] * 2), method
    first, *later = steps(benchmark, grown["c-lora"])
    # Old directions times the new route, and its gradient: a penalty from the second round on, the same ever after.
    assert later == pytest.approx([first + 2 * SITES * RANKS["c-lora"] ** 3] * 2)


def test_steps_that_grow_do_so_by_the_round(benchmark: ModuleType, grown: dict[str, Any]) -> None:
    rank = RANKS["o-lora"]
    first, *later = steps(benchmark, grown["o-lora"])
    penalty = 2 * SITES * rank * rank * WIDTH  # of the live A with one round's, and its gradient
    assert later == pytest.approx([first + penalty, first + 3 * penalty])
    first, *later = steps(benchmark, grown["sd-lora"])
    # Two products at each site, the way back through one for the magnitudes; to the input, which needs no gradient in
    # the first block, through the other.
    product = BATCH * TOKENS * WIDTH * RANKS["sd-lora"]
    wider = (2 * SITES + SITES + SITES - 2) * product
    assert later == pytest.approx([first + wider, first + 3 * wider])


def test_predictions(benchmark: ModuleType, grown: dict[str, Any]) -> None:
    bare = predictions(benchmark, grown["clora"].merged)[0]
    for method in RANKS:
        mergeable = method not in ("dual-lora", "color")
        assert predictions(benchmark, grown[method].merged) == ([bare] * 3 if mergeable else []), method
    for method in ("inflora", "o-lora", "sd-lora"):  # the past lies in the weights, the live part rests
        assert predictions(benchmark, grown[method].finished) == [bare] * 3, method
    one = predictions(benchmark, grown["clora"].finished)
    assert one == pytest.approx([bare + 2 * SITES * BATCH * TOKENS * WIDTH * RANKS["clora"]] * 3)
    head = BATCH * WIDTH * ROUNDS[-1]
    first, *later = predictions(benchmark, grown["color"].finished)
    assert first == pytest.approx(one[0])
    assert later == pytest.approx([one[0] + bare - head] * 2)  # a pass of the backbone that chooses, without a head
    first, second, fourth = predictions(benchmark, grown["dual-lora"].finished)
    assert bare < first < second < fourth


def test_merged_networks_answer_as_before(benchmark: ModuleType, grown: dict[str, Any]) -> None:
    images = benchmark.pictures(BATCH, SIZE, seed=0)
    for method, found in grown.items():
        for rounds, merged in found.merged.items():
            with torch.no_grad():
                expected = found.finished[rounds].predict(images)
                torch.testing.assert_close(merged.predict(images), expected, msg=method)
        rows = torch.stack([each.predict(images).detach() for each in found.finished.values()])
        assert (rows[0] - rows[1]).abs().max() > 1e-4  # rounds do change the network


def test_every_turn_begins_with_another(benchmark: ModuleType) -> None:
    calls: list[str] = []
    found = benchmark.in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, 4)
    assert "".join(calls) == "abcbcacababc"
    assert {name: len(times) for name, times in found.items()} == {"a": 4, "b": 4, "c": 4}


def test_ratios_and_their_table(benchmark: ModuleType) -> None:
    found = {method: benchmark.measure(method, OPTIONS) for method in ("inflora", "color")}
    most = found["inflora"]["rounds"]["2"]
    most["step_over_first"], most["merged_over_bare"] = [1.0, 1.06, 1.2], [0.9, 1.01, 1.1]
    found["inflora"]["rounds"]["10"] = most | {"step_over_reference": [0.9, 1.0, 1.3]}
    assert [(each["limit"], each["ratios"]) for each in benchmark.compare(found)] == [
        (1.05, [1.0, 1.06, 1.2]),
        (1.02, [0.9, 1.01, 1.1]),
        (1.0, [0.9, 1.0, 1.3]),
    ]
    first = found["color"]["rounds"]["1"]
    assert first["step_over_first"] == [1.0] * OPTIONS.turns
    assert first["merged_over_bare"] is None
    assert first["step_seconds"] > 0
    lines = list(benchmark.table(found))
    assert "| `inflora`: step(10) / step(1) | ≤ 1.05 | 1.060 (1.000–1.200), **missed** |" in lines
    assert "| `inflora`: inference(10) merged / bare backbone | ≤ 1.02 | 1.010 (0.900–1.100) |" in lines
    assert "| `inflora`: step(10) / `seq-lora`'s | ≤ 1.00 | 1.000 (0.900–1.300) |" in lines
    assert len({line.count("|") for line in lines[: lines.index("")]}) == 1
