"""benchmarks/training.py in miniature: the bytes that it counts, derived from shapes; its ratios and its table."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sapwood import rounds
from sapwood.backbones import create_backbone
from sapwood.network import Teacher

BACKBONE = "random:dinov2-tiny"
WIDTH, BLOCKS, SITES = 32, 2, 2  # q and v
HEIGHT, SIDE, BATCH, RANK, FIRST, CLASSES = 28, 42, 2, 4, 3, 5  # FIRST: channels after the first round
FLOAT = 4
OPTIONS = argparse.Namespace(
    backbone=BACKBONE, image_size=f"{HEIGHT}x{SIDE}", batch=BATCH, rank=RANK, classes=CLASSES, turns=1
)
ADAPTER = FLOAT * BLOCKS * SITES * RANK * (WIDTH + WIDTH)
ADAPTER_TENSORS = 2 * BLOCKS * SITES
HEAD_TENSORS = 4  # decoder and classifier, weight and bias


def head_bytes(classes: int) -> int:
    return FLOAT * (WIDTH * WIDTH + WIDTH + classes * (WIDTH + 1))


@pytest.fixture(scope="module")
def training() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "training.py"
    spec = importlib.util.spec_from_file_location("benchmarks_training", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def spoken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What a script of the benchmarks prints as JSON; here, since a process of its own would take seconds to import."""

    def run(script: str, *options: str) -> dict[str, Any]:
        path = Path(__file__).resolve().parents[1] / "benchmarks" / script
        threads = torch.get_num_threads()
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, "argv", [str(path), "--json", *options])
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
            sys.modules.pop("training", None)  # scripts import each other by file name
        found = json.loads(capsys.readouterr().out)
        assert isinstance(found, dict)
        return found

    return run


@pytest.fixture(autouse=True)
def usual_teacher() -> Iterator[None]:
    """A side may put another teacher into ``rounds``; in the benchmark its process ends there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "Teacher", Teacher)
        yield


@pytest.fixture(scope="module")
def sides(training: ModuleType) -> dict[str, dict[str, Any]]:
    """One in a process of its own, as all are in the benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "Teacher", Teacher)
        here = {side: training.measure(side, OPTIONS) for side in ("copied", "full")}
    return {"shared": training.child("shared", OPTIONS), **here}


@pytest.fixture(scope="module")
def backbone_bytes() -> int:
    return FLOAT * sum(parameter.numel() for parameter in create_backbone(BACKBONE, (HEIGHT, SIDE)).parameters())


def adam(trained: int, tensors: int) -> int:
    """Two moments, and a count of steps a tensor."""
    return 2 * trained + FLOAT * tensors


@pytest.mark.parametrize("side", ["shared", "copied"])
def test_resident_bytes_of_clora(side: str, sides: dict[str, dict[str, Any]], backbone_bytes: int) -> None:
    trained = ADAPTER + head_bytes(CLASSES)
    teacher = ADAPTER + head_bytes(FIRST) + (backbone_bytes if side == "copied" else 0)
    expected = {
        "weights": backbone_bytes + trained,
        "teacher": teacher,
        "gradients": trained,
        "optimizer": adam(trained, ADAPTER_TENSORS + HEAD_TENSORS),
    }
    assert sides[side]["resident"] == expected | {"total": sum(expected.values())}
    assert sides[side]["trainable_bytes"] == trained


def test_resident_bytes_where_the_backbone_trains(sides: dict[str, dict[str, Any]], backbone_bytes: int) -> None:
    backbone = create_backbone(BACKBONE, (HEIGHT, SIDE))
    idle = FLOAT * WIDTH  # the mask token: nothing is masked, so it has neither gradient nor moments
    tensors = len(list(backbone.parameters())) - 1 + HEAD_TENSORS
    found = sides["full"]["resident"]
    trained = backbone_bytes + head_bytes(CLASSES)
    assert found["weights"] == trained
    assert found["teacher"] == backbone_bytes + head_bytes(FIRST)
    assert found["gradients"] == trained - idle
    assert found["optimizer"] == adam(trained - idle, tensors)
    assert sides["full"]["trainable_bytes"] == trained


@pytest.mark.parametrize("side", ["shared", "copied", "full"])
def test_nothing_else_is_resident(side: str, training: ModuleType) -> None:
    """All tensors that live after a step and did not before the benchmark: what it counted, and the batch."""

    def living() -> list[Tensor]:
        found = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]  # not what traces
        return [each for each in found if each.device.type == "cpu"]

    before = living()
    known = {each.untyped_storage().data_ptr() for each in before}
    alive: list[int] = []

    def look(*_: Any) -> None:
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in living()}
        alive.append(sum(size for address, size in storages.items() if address not in known))

    hook = register_optimizer_step_post_hook(look)
    try:
        found = training.measure(side, OPTIONS)
    finally:
        hook.remove()
    pixels = BATCH * HEIGHT * SIDE
    batch = 3 * pixels + pixels + 8 * BATCH  # pictures, masks, indices
    assert 0 <= alive[-1] - found["resident"]["total"] - batch < 200  # the channels of the round, the last loss


def test_files_are_the_trained_tensors_and_their_headers(sides: dict[str, dict[str, Any]]) -> None:
    sites = [f"block_{block}_{part}" for block in range(BLOCKS) for part in "qv"]
    files = (
        {f"down.{site}": torch.zeros(RANK, WIDTH) for site in sites}
        | {f"up.{site}": torch.zeros(WIDTH, RANK) for site in sites},
        {
            "decoder.weight": torch.zeros(WIDTH, WIDTH, 1, 1),
            "decoder.bias": torch.zeros(WIDTH),
            "classifier.weight": torch.zeros(CLASSES, WIDTH),
            "classifier.bias": torch.zeros(CLASSES),
        },
    )
    assert sides["shared"]["stored_bytes"] == sum(len(save(tensors)) for tensors in files)


def test_ratios_and_their_table(training: ModuleType, sides: dict[str, dict[str, Any]]) -> None:
    ratios = training.compare(sides)
    total = {side: found["resident"]["total"] for side, found in sides.items()}
    shared = sides["shared"]
    assert {name: ratio["value"] for name, ratio in ratios.items()} == {
        "step / three frozen forwards": pytest.approx(shared["ratios"][0]),  # of its one turn
        "resident bytes, shared / copied": pytest.approx(total["shared"] / total["copied"]),
        "resident bytes, shared / full": pytest.approx(total["shared"] / total["full"]),
        "stored / trainable bytes": pytest.approx(shared["stored_bytes"] / shared["trainable_bytes"]),
    }
    assert [ratio["limit"] for ratio in ratios.values()] == [1.25, 0.55, 0.30, 1.05]
    assert 0 < shared["peak"]["imports"] <= shared["peak"]["loading"] <= shared["peak"]["training"]
    lines = list(training.table(sides))
    # So small, the headers of two files weigh more than a twentieth of the tensors.
    assert (
        f"| stored / trainable bytes | ≤ 1.05 | {ratios['stored / trainable bytes']['value']:.3f}, **missed** |"
        in lines
    )
    assert f"| resident bytes, shared / full | ≤ 0.30 | {total['shared'] / total['full']:.3f} |" in lines
    assert len({line.count("|") for line in lines[: lines.index("")]}) == 1


def test_steps_of_objectives(spoken: Callable[..., dict[str, Any]]) -> None:
    """The script itself in miniature: one objective with a teacher's forward, one that shares it."""
    given = ["--batch", str(BATCH), "--turns", "2", "--objectives", "plop,ssul,ewc"]
    found = spoken("objectives.py", "--backbone", BACKBONE, "--image-size", f"{HEIGHT}x{SIDE}", *given)
    assert {name: one["forwards"] for name, one in found.items()} == {"plop": 3, "ssul": 1, "ewc": 2}
    for one in found.values():
        assert len(one["ratios"]) == 2
        assert min(one["ratios"]) > 0.5  # it cannot do with less than the forwards it needs


@pytest.mark.parametrize(
    ("script", "options", "key"),
    [
        ("step.py", ("--size", "28", "--batch", "2", "--rounds", "1", "--precisions", "fp32"), "fp32"),
        ("learn.py", ("--size", "28", "--pictures", "8", "--epochs", "1"), "8"),
    ],
)
def test_the_other_scripts_run(
    script: str, options: tuple[str, ...], key: str, spoken: Callable[..., dict[str, Any]]
) -> None:
    assert key in spoken(script, *options)
