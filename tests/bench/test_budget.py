"""Equal compute: the most whole epochs within the budget, whatever a step costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from row_processes import Rows

from sapwood.bench.budget import chosen_epochs, probe, with_epochs
from sapwood.bench.plan import Plan
from sapwood.bench.rows import Run
from sapwood.bench.runner import run
from sapwood.cli import main
from sapwood.data.masks import MaskedPictures, read_masks
from sapwood.data.streams import MaskStream, Round
from sapwood.errors import ConfigError
from sapwood.progress import Progress


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A benchmark of six classes in three tasks, of different sizes."""
    folder, random = tmp_path_factory.mktemp("pictures") / "animals", np.random.default_rng(0)
    for count, name in enumerate(("ant", "bee", "cat", "dog", "elk", "fox"), 12):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name / f"{index:02}.png")
    return f"own:{folder}:3"


@pytest.fixture
def plan(own: str) -> Callable[..., Plan]:
    def make(*methods: str, **changed: Any) -> Plan:
        training = {"batch_size": 4, "precision": "fp32", **changed.pop("training", {})}
        options = {"seeds": 1, "backbone": "random:dinov2-tiny", "image_size": 28, "controls": False} | changed
        return Plan(own, methods, settings={"training": training}, **options)

    return make


@pytest.mark.parametrize("method", ["lora+lwf", "color", "joint"])
def test_an_epoch_costs_what_a_run_counts(plan: Callable[..., Plan], method: str, tmp_path: Path) -> None:
    """A teacher from the second round on, steps that grow, and training anew on everything."""
    made = plan(method, training={"accumulate": 2} if method == "lora+lwf" else {})
    (row,) = made.rows().values()
    stream = made.stream(0)
    probed = probe(stream, row.run, tmp_path / "probe")
    measured = run(stream, with_epochs(row.run, 2), tmp_path / "row.json")
    passes = measured["pass_gmacs"]
    assert 2 * probed.epoch == pytest.approx(measured["train_gmacs"] - passes, rel=1e-9)
    assert 0 < passes <= probed.passes * (1 + 1e-9)
    assert passes > 0.4 * probed.passes  # some leave validation pictures out, or look at a part


def test_the_bound_of_overlapped_masks_makes_the_rounds_steps(mask_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Eight frames in the first round and four of them again in the second: two epochs of each are three of all."""
    frames = read_masks(mask_folder(["ant", "bee"], 8, name="frames"))
    tests = read_masks(mask_folder(["ant", "bee"], 3, name="tests", seed=2))
    parts = [
        MaskedPictures(list(frames)[:count], frames.legend.keep({name}, "background"))
        for count, name in ((8, "ant"), (4, "bee"))
    ]
    rounds = tuple(Round(f"round {index}", part, tests) for index, part in enumerate(parts))
    stream = MaskStream("overlapped", rounds, ("ant", "bee"), None, tests.legend, "include")
    training = {"precision": "fp32", "batch_size": 2, "validation": 0.0}
    shown = {}
    for method in ("joint", "clora"):
        wanted = Run(method, "random:dinov2-tiny", 0, (28, 42), settings={"training": training})
        probed = probe(stream, wanted, tmp_path / method)
        measured = run(stream, with_epochs(wanted, 2), tmp_path / f"{method}.json")
        shown[method] = measured["train_gmacs"] - measured["pass_gmacs"]
        assert 2 * probed.epoch == pytest.approx(shown[method], rel=1e-9)
        assert measured["settings"]["training"]["epochs"] == {"joint": 3, "clora": 2}[method]
    assert shown["joint"] == pytest.approx(shown["clora"], rel=0.01)  # but for a class more in its head all along


def test_a_short_last_step_counts_for_its_pictures(plan: Callable[..., Plan], tmp_path: Path) -> None:
    """The same pictures as often, in steps of 4 and of 5: the rounds have no multiple of either."""
    found = {}
    for size in (4, 5):
        (row,) = plan("seq-lora", training={"batch_size": size, "validation": 0.0}).rows().values()
        made = run(plan("seq-lora").stream(0), with_epochs(row.run, 2), tmp_path / f"{size}.json")
        assert any(count % size for count in made["train_pictures"])
        found[size] = made["train_gmacs"] - made["pass_gmacs"]
    assert found[4] == pytest.approx(found[5], rel=1e-9)


def test_the_bound_pays_for_its_last_training(plan: Callable[..., Plan], tmp_path: Path) -> None:
    found = {}
    for at_end in (False, True):
        made = plan("joint", joint_at_end=at_end, class_order="natural")
        (row,) = made.rows().values()
        found[at_end] = probe(made.stream(0), row.run, tmp_path / str(at_end))
    assert found[True] == found[False]
    assert min(found[True]) > 0


def test_the_most_epochs_within_the_budget(plan: Callable[..., Plan], tmp_path: Path) -> None:
    rows = plan("seq-lora", "lora+lwf", "ncm").rows()
    (cheap, dear, free) = rows
    stream = plan("ncm").stream(0)
    costs = {name: probe(stream, row.run, tmp_path / name) for name, row in rows.items()}
    assert costs[free] == (0, 0), "nothing is trained"
    assert costs[dear].epoch > costs[cheap].epoch, "the teacher's forward counts"
    budget = costs[dear].passes + 5.5 * costs[dear].epoch
    chosen = chosen_epochs(plan("ncm", budget_gmacs=budget), rows, Progress())
    assert chosen == {dear: 5, cheap: int((budget - costs[cheap].passes) / costs[cheap].epoch)}
    with pytest.raises(ConfigError) as caught:
        chosen_epochs(plan("ncm", budget_gmacs=0.9 * sum(costs[dear])), rows, Progress())
    (line,) = str(caught.value).splitlines()
    assert f"one epoch of row {dear}" in line
    least = float(line.split("at least ")[1].split(",")[0])
    assert sum(costs[dear]) <= least <= 1.002 * sum(costs[dear])
    assert chosen_epochs(plan("ncm", budget_gmacs=least), rows, Progress())[dear] == 1


def bench(own: str, out: Path, *more: str) -> int:
    tiny = (
        "--backbone",
        "random:dinov2-tiny",
        "--image-size",
        "28",
        "--precision",
        "fp32",
        "--seeds",
        "1",
        "--no-controls",
    )
    with pytest.raises(SystemExit) as ended:
        main(["bench", own, "--out", str(out), *tiny, "--batch-size", "4", *more])
    return int(ended.value.code or 0)


def test_the_command_line(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], forked_rows: Rows) -> None:
    out = tmp_path / "out"
    assert bench(own, out, "--methods", "lora+lwf", "--budget-gmacs", "1e-9") == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: --budget-gmacs 1e-09 does not pay for one epoch of row lora+lwf-random-seed0")
    least = float(line.split("at least ")[1].split(",")[0])
    assert not out.exists(), "another budget may still be given"
    budget = 2.5 * least
    assert bench(own, out, "--methods", "lora+lwf", "--budget-gmacs", str(budget)) == 0
    (lwf,) = json.loads((out / "results.json").read_text())
    epochs, passes = lwf["settings"]["training"]["epochs"], lwf["pass_gmacs"]
    assert epochs == lwf["run"]["settings"]["training"]["epochs"] >= 2
    each = (lwf["train_gmacs"] - passes) / epochs
    assert budget - passes - each < lwf["train_gmacs"] <= budget, "one epoch more would be too many"
    assert lwf["budget_gmacs"] == budget
    assert json.loads((out / "bench.json").read_text())["budget_gmacs"] == budget
    capsys.readouterr()
    for options, told in (
        (("--budget-gmacs", "0"), "--budget-gmacs must be > 0 and finite, got 0.0"),
        (("--budget-gmacs", "nan"), "--budget-gmacs must be > 0 and finite, got nan"),
        (("--budget-gmacs", "1", "--epochs", "3"), "--epochs and --budget-gmacs both say"),
        (("--budget-gmacs", "1", "--set", "training.cache_prefix=2"), "--budget-gmacs counts what is computed"),
        (("--budget-gmacs", str(2 * budget)), "holds rows of budget_gmacs="),
    ):
        assert bench(own, out, "--methods", "lora+lwf", *options) == 2
        assert told in capsys.readouterr().err
    small = tmp_path / "small"
    assert bench(own, small, "--methods", "ncm", "--budget-gmacs", str(least / 2)) == 0
    assert bench(own, small, "--methods", "ncm,lora+lwf", "--budget-gmacs", str(least / 2)) == 2
    assert f"; name another --out and give at least {least:g} there, the" in capsys.readouterr().err
