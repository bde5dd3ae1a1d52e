"""Runs in this process: what they go on with, what they refuse, and how domains are measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from sapwood.bench import Run, runner
from sapwood.bench.plan import Plan
from sapwood.data.masks import read_masks
from sapwood.data.sources import read_data
from sapwood.data.streams import MaskStream, Round, Stream
from sapwood.errors import ConfigError, DataError

CLASSES = ["ant", "bee"]
NCM = Run("ncm", "random:dinov2-tiny", 0, 28)
VARYING = ("train_seconds", "milliseconds_per_image", "peak_memory", "resumed", "timing_valid")


@pytest.fixture
def domains(picture_folder: Callable[..., Path]) -> Stream:
    """The same classes twice, with test pictures of each round."""
    parts = [
        Round(name, *(read_data(picture_folder(CLASSES, 6, name=f"{name}-{part}", seed=seed)) for part in ("a", "b")))
        for seed, name in enumerate(("day", "dusk"))
    ]
    return Stream("weather", tuple(parts), tuple(CLASSES), None, domains=True)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[key] == other[key] for key in one if key not in VARYING)


@pytest.mark.parametrize("method", ["ncm", "joint"])
def test_domains_are_measured_one_by_one(method: str, domains: Stream, tmp_path: Path) -> None:
    found = runner.run(domains, Run(method, NCM.backbone, 0, 28), tmp_path / "row.json")
    (first, nothing), (again, second) = found["accuracy"]
    assert nothing is None
    assert first is not None
    total = found["after_each"][1]["accuracy"]
    assert (again + second) / 2 == pytest.approx(total)  # equally many test pictures


@pytest.mark.parametrize("background", ["include", "exclude"])
def test_masks_count_the_background_if_the_benchmark_does(
    background: Literal["include", "exclude"], mask_folder: Callable[..., Path], tmp_path: Path
) -> None:
    parts = [read_masks(mask_folder(names, 4, name=names[0])) for names in (["ant", "bee"], ["cat"])]
    tests = read_masks(mask_folder(["ant", "bee", "cat"], 3, name="tests", seed=2))
    rounds = tuple(Round(f"round {index}", part, tests) for index, part in enumerate(parts))
    stream = MaskStream("masks", rounds, ("ant", "bee", "cat"), None, tests.legend, background)
    wanted = Run("frozen+mib", NCM.backbone, 0, (28, 42), settings={"training": {"epochs": 1, "precision": "fp32"}})
    found = runner.run(stream, wanted, tmp_path / "row.json")
    counted = []
    for after in found["after_each"]:
        values = [value for value in after["per_class"].values() if value is not None]
        counted.append([*values, *([after["background"]] if background == "include" else [])])
    means = [sum(values) / len(values) for values in counted]
    assert found["background"] == background
    assert found["miou_all"] == found["last_accuracy"] == pytest.approx(means[-1])
    assert found["average_incremental_accuracy"] == pytest.approx(sum(means) / 2)


def test_killed_between_a_round_and_its_measure(
    domains: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runner.run(domains, NCM, tmp_path / "whole.json")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner, "_domain_cells", die)
        with pytest.raises(KeyboardInterrupt):
            runner.run(domains, NCM, tmp_path / "broken.json")
    found = runner.run(domains, NCM, tmp_path / "broken.json", marks={"timing_valid": True})
    assert same(whole, found)
    # Its seconds lack what was done before the kill.
    assert [(row["resumed"], row["timing_valid"]) for row in (whole, found)] == [(False, True), (True, False)]


def test_work_of_another_run_is_begun_anew(domains: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Run("ncm", NCM.backbone, 7, 28, head="cosine", settings={"training": {"epochs": 1}})
    whole = runner.run(domains, wanted, tmp_path / "whole.json")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner, "outcomes", die)
        with pytest.raises(KeyboardInterrupt):
            runner.run(domains, NCM, tmp_path / "row.json")
    assert (tmp_path / "row.work").exists()
    found = runner.run(domains, wanted, tmp_path / "row.json", marks={"timing_valid": False})
    assert same(whole, found)
    assert (found["resumed"], found["timing_valid"]) == (False, False)  # begun anew, beside others
    assert found["parts"]["head"] == "cosine"
    assert not (tmp_path / "row.work").exists()
    with pytest.raises(ConfigError, match=r"row\.json is the row of another run; remove it"):
        runner.run(domains, NCM, tmp_path / "row.json")


def test_held_out_pictures_stand_for_the_test_pictures(picture_folder: Callable[..., Path]) -> None:
    folder = picture_folder(["ant", "bee", "cat", "dog"], 20)
    own = Plan(f"own:{folder}:2", ("ncm",), seeds=2, held_out=0.3)
    whole = replace(own, held_out=None)
    for seed in (0, 1):
        stream, all_of = own.stream(seed), whole.stream(seed)
        assert (stream.name, stream.classes) == (f"{all_of.name}/validation", all_of.classes)
        for part, other in zip(stream.rounds, all_of.rounds, strict=True):
            names, held = ({picture.name for picture in each} for each in (part.train, part.test))
            assert names | held == {picture.name for picture in other.train}
            assert not names & held
            assert not held & {picture.name for picture in other.test}
            assert Counter(part.test.labels) == {
                name: round(0.3 * len(other.train) / 2) for name in other.train.classes
            }
    few = Plan(f"own:{picture_folder({'ant': 8, 'bee': 4}, name='few')}:2", ("ncm",), held_out=0.3)
    assert [len(part.test) for part in few.stream(0).rounds] in ([2, 1], [1, 2])
    alone = replace(few, benchmark=f"own:{picture_folder({'ant': 8, 'bee': 2}, name='alone')}:2")
    with pytest.raises(DataError, match="bee has a single training picture, so none can be held out"):
        alone.stream(0)
    for share in (0, 1, -0.5):
        with pytest.raises(ConfigError, match=r"--held-out must lie in \(0, 1\), got"):
            replace(own, held_out=share)
    with pytest.raises(ConfigError, match="--held-out is for classes"):
        Plan("camvid-4-3", ("clora+mib",), held_out=0.3)


def test_settings_for_others_do_not_touch_controls() -> None:
    settings = {"adapter": {"rank": 8}, "training": {"epochs": 2}}
    plan = Plan("split-animals-5x2", ("c-lora",), seeds=1, image_size=160, settings=settings)
    made = {name: one.run for name, one in plan.rows().items()}
    assert made["ncm-pretrained-seed0"].settings == {"adapter": {}, "training": {"epochs": 2}}
    assert json.loads(json.dumps(made["c-lora-random-seed0"].settings)) == settings | {"adapter": {"rank": 8}}
    assert made["c-lora-random-seed0"].image_size == 154  # a multiple of its patch


@pytest.mark.parametrize(
    ("benchmark", "method", "option", "told"),
    [
        ("camvid-4-3", "clora+mib", {"per_class": 10}, "--per-class is for classes; of masks, --every"),
        ("split-cifar10-5x2", "ncm", {"every": 3}, "--every is for masks; of classes, --per-class"),
    ],
)
def test_options_of_the_other_kind_are_refused(benchmark: str, method: str, option: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Plan(benchmark, (method,), seeds=1, **option)  # type: ignore[arg-type]
