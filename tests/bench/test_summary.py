"""Lines made of rows, against numbers worked out from the rows themselves."""

from __future__ import annotations

import base64
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood.bench.rows import with_intransigence
from sapwood.bench.summary import MEASURES, Line, correct, group_starts, summarise
from sapwood.errors import DataError
from sapwood.functional.bootstrap import paired_difference, paired_iou_difference

from .helpers import mask_row, mask_rows, row, rows


def pick(lines: tuple[Line, ...], method: str, weights: str = "pretrained") -> Line:
    (found,) = [line for line in lines if (line.method, line.weights) == (method, weights)]
    return found


def outcomes(right: np.ndarray) -> dict[str, Any]:
    """What a row says of 120 test pictures."""
    return {"correct": base64.b64encode(np.packbits(right)).decode(), "last_accuracy": float(right.mean())}


def test_mean_and_deviation_over_seeds() -> None:
    made = rows()
    line = pick(summarise(made), "c-lora")
    for name in MEASURES:
        values = [each.get(name) for each in made if each["method"] == "c-lora"]
        if None in values:
            assert line.values[name] is None
        else:
            assert line.values[name].mean == pytest.approx(sum(values) / 3)
            assert line.values[name].deviation == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    for after in range(3):
        values = [each["after_each"][after]["accuracy"] for each in made if each["method"] == "c-lora"]
        assert line.course[after].mean == pytest.approx(statistics.fmean(values))
    assert line.seeds == (0, 1, 2)
    assert line.reconstructed


def test_one_seed_has_no_deviation() -> None:
    line = pick(summarise(rows(seeds=[1])), "seq-lora")
    assert line.values["last_accuracy"].deviation is None
    assert line.course[0].deviation is None


def test_a_number_that_a_seed_lacks_is_not_averaged() -> None:
    made = [row(seed=0), row(seed=1, netscore=None, after_each=[{}, {}, {"accuracy": 0.5}])]
    (line,) = summarise(made)
    assert line.values["netscore"] is None
    assert [value is None for value in line.course] == [True, True, False]


def test_bounds_come_last_and_random_weights_after_them() -> None:
    lines = summarise(rows())
    found = [(line.method, line.weights) for line in lines]
    trained = [("seq-lora", "pretrained"), ("c-lora", "pretrained"), ("ncm", "pretrained")]
    assert found == [*trained, ("joint", "pretrained"), ("ncm", "random")]
    assert group_starts(lines) == [3, 4]


def test_one_row_that_ran_beside_others_spoils_the_timings_of_its_line() -> None:
    lines = summarise([row(seed=0), row(seed=1, timing_valid=False), row("ncm")])
    assert [line.timing_valid for line in lines] == [False, True]


def test_the_gap_by_hand() -> None:
    """joint right on all of 120, the method on the first 90: a quarter of them, ± 1.96 sqrt(3/16 / 120) = 0.077."""
    right = np.arange(120) < 90
    lines = summarise([row("joint", **outcomes(np.ones(120, bool))), row(**outcomes(right))])
    gap = pick(lines, "seq-lora").gap
    assert gap.mean == 0.25
    assert (gap.low, gap.high) == pytest.approx((0.25 - 0.077, 0.25 + 0.077), abs=0.012)
    assert gap.seeds == (0,)
    assert pick(lines, "joint").gap is None


def test_the_gap_is_the_paired_one_over_seeds() -> None:
    made = rows()
    gap = pick(summarise(made), "c-lora").gap
    joint, method = ([correct(each) for each in made if each["method"] == name] for name in ("joint", "c-lora"))
    expected = paired_difference(np.stack(joint), np.stack(method), np.random.default_rng(0))
    assert (gap.mean, gap.low, gap.high) == pytest.approx(expected)


def test_only_seeds_and_orders_in_common_are_compared() -> None:
    made = [row("joint", seed, 0.9) for seed in (0, 1, 2)] + [row(seed=seed) for seed in (1, 2, 3)]
    made[2]["order_seed"] = 7
    gap = pick(summarise(made), "seq-lora").gap
    assert gap.seeds == (1,)
    assert gap.mean == pytest.approx(made[1]["last_accuracy"] - made[3]["last_accuracy"])


def test_no_gap_without_a_bound_of_the_same_weights() -> None:
    made = rows()
    assert pick(summarise(made), "ncm", "random").gap is None
    assert pick(summarise([each for each in made if each["method"] != "joint"]), "c-lora").gap is None


def test_joint_alone_is_what_gaps_are_measured_to() -> None:
    full = row("joint-full", level=0.99, upper_bound=True)
    joint, method = row("joint", level=0.9), row()
    assert pick(summarise([full, joint, method]), "seq-lora").gap.mean == pytest.approx(
        joint["last_accuracy"] - method["last_accuracy"]
    )
    assert pick(summarise([full, method]), "seq-lora").gap is None


def test_intransigence_is_what_joint_has_more_of_each_round_just_after_it() -> None:
    own = [[0.75, None], [0.25, 0.5]]
    bound = [[0.875, None], [0.75, 0.75]]
    made = [row(accuracy=own), row("joint", accuracy=bound), row(seed=1, accuracy=own)]
    unmeasured = [row("joint", seed=1, accuracy=[[None, None], bound[1]])]
    shown = [each["intransigence"] for each in with_intransigence([*made, *unmeasured])]
    assert shown == [(0.125 + 0.25) / 2, 0.0, None, None]


def test_a_gap_without_outcomes_has_no_interval() -> None:
    gap = pick(summarise([row("joint", level=0.9), row(correct=None)]), "seq-lora").gap
    assert gap.mean > 0
    assert (gap.low, gap.high) == (None, None)


def test_outcomes_that_do_not_fit_the_row_are_refused() -> None:
    with pytest.raises(DataError, match="seq-lora, seed 0: 4 test pictures need 1 bytes"):
        summarise([row("joint"), row(test_pictures=[4])])


def test_the_gap_of_masks_is_of_mean_iou(tmp_path: Path) -> None:
    made = mask_rows(tmp_path)
    gap = pick(summarise(made, tmp_path), "clora+mib").gap
    above, below = (
        [np.load(tmp_path / "rows" / each["counts"]["file"])["counts"] for each in made if each["method"] == name]
        for name in ("joint", "clora+mib")
    )
    assert (gap.mean, gap.low, gap.high) == pytest.approx(
        paired_iou_difference(above, below, np.random.default_rng(0)), abs=1e-12
    )
    assert 0 < gap.low < gap.mean < gap.high


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip"])
def test_masks_are_read_from_the_folder_only(tmp_path: Path, content: bytes) -> None:
    made = mask_rows(tmp_path)
    assert pick(summarise(made), "clora+mib").gap.low is None
    (tmp_path / "rows" / made[-1]["counts"]["file"]).write_bytes(content)
    with pytest.raises(DataError, match=r"clora\+mib-pretrained-seed1\.npz: cannot be read"):
        summarise(made, tmp_path)


def test_the_course_of_masks_is_that_of_the_mean_iou(tmp_path: Path) -> None:
    made = mask_row(tmp_path, "clora+mib", 0, 0.8)
    (line,) = summarise([made], tmp_path)
    assert [value.mean for value in line.course] == [made["miou_all"] / 2, made["miou_all"]]


def test_a_background_that_does_not_count(tmp_path: Path) -> None:
    made = [each | {"background": "exclude"} for each in mask_rows(tmp_path)]
    for each in made:
        for after in each["after_each"]:
            after["per_class"] = {"road": 0.5, "car": 0.25, "tree": None}
    line = pick(summarise(made, tmp_path), "clora+mib")
    assert [value.mean for value in line.course] == [0.375, 0.375]
    above, below = (
        [
            np.load(tmp_path / "rows" / each["counts"]["file"])["counts"][:, :, 1:]
            for each in made
            if each["method"] == name
        ]
        for name in ("joint", "clora+mib")
    )
    _, low, high = paired_iou_difference(above, below, np.random.default_rng(0))
    assert (line.gap.low, line.gap.high) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "no rows"),
        ([row(), row(benchmark="other")], "one benchmark, got other, split-cifar100-10x10"),
        ([row(), row()], r"several rows of one seed: \[0, 0\]"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(made: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(made)
