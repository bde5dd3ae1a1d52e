"""Which pictures and labels a step shows: answers by hand, published sizes, and what must hold of any label sets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.data.protocols import PROTOCOLS, annotated, read_partition, select, steps_of
from sapwood.errors import ConfigError, DataError

# Steps {1, 2}, {3}, {4, 5}. By hand, picture by picture: old, current and future classes, background, void, a class (9)
# of no step.
STEPS = ((1, 2), (3,), (4, 5))
LABELS = [
    {0, 1},
    {1, 3},
    {0, 2, 3, 255},
    {0, 255},
    {3, 4},
    {0, 1, 5},
    {5, 4, 255},
    {1, 9},
    {0, 3},
    set(),
]


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("overlapped", [[0, 1, 2, 5, 7], [1, 2, 4, 8], [4, 5, 6]]),
        ("disjoint", [[0], [1, 2, 8], [4, 5, 6]]),
        ("sequential", [[0], [1, 2, 8], [4, 5, 6]]),
    ],
)
def test_by_hand(protocol: str, expected: list[list[int]]) -> None:
    assert select(LABELS, STEPS, protocol) == expected


def test_annotated_classes_by_hand() -> None:
    for protocol in ("overlapped", "disjoint"):
        assert [annotated(STEPS, step, protocol) for step in range(3)] == [(1, 2), (3,), (4, 5)]
    assert [annotated(STEPS, step, "sequential") for step in range(3)] == [(1, 2), (1, 2, 3), (1, 2, 3, 4, 5)]
    # Learning orders need not be sorted.
    assert annotated([[7, 3], [5]], 0, "overlapped") == (3, 7)


@pytest.mark.parametrize(
    ("steps", "protocol", "said"),
    [
        (STEPS, "overlap", "no protocol 'overlap'; known: sequential, disjoint, overlapped"),
        ([[1], [1, 2]], "disjoint", "one step only"),
        ([[1], []], "disjoint", "needs classes"),
        ([[0, 1]], "disjoint", "0 is background"),
        ([[255]], "disjoint", "255 is ignored"),
    ],
)
def test_refusals(steps: Sequence[Sequence[int]], protocol: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        select(LABELS, steps, protocol)
    with pytest.raises(ConfigError, match=said):
        annotated(steps, 0, protocol)


def test_sizes_make_steps() -> None:
    assert steps_of((15, *[1] * 5))[1:] == [(16,), (17,), (18,), (19,), (20,)]
    for sizes in ((), (3, 0)):
        with pytest.raises(ConfigError, match="sizes >= 1"):
            steps_of(sizes)


CLASSES = 6
PICTURES = st.lists(st.frozensets(st.sampled_from([0, *range(1, CLASSES + 1), 255])), max_size=30)


@st.composite
def divided(draw: st.DrawFn) -> list[list[int]]:
    """All classes in any order, cut anywhere."""
    order = draw(st.permutations(range(1, CLASSES + 1)))
    cuts = sorted(draw(st.sets(st.integers(1, CLASSES - 1))))
    return [order[first:last] for first, last in zip([0, *cuts], [*cuts, CLASSES], strict=True)]


@given(labels=PICTURES, steps=divided())
def test_properties(labels: list[frozenset[int]], steps: list[list[int]]) -> None:
    overlapped, disjoint = select(labels, steps, "overlapped"), select(labels, steps, "disjoint")
    assert select(labels, steps, "sequential") == disjoint
    assert all(set(few) <= set(many) for few, many in zip(disjoint, overlapped, strict=True))
    assert disjoint[-1] == overlapped[-1]  # there is no future
    with_class = [index for index, present in enumerate(labels) if set(present) - {0, 255}]
    assert sorted(index for step in disjoint for index in step) == with_class  # a partition: each exactly once
    assert sorted({index for step in overlapped for index in step}) == with_class
    bare = [present - {0, 255} for present in labels]
    for protocol in PROTOCOLS:
        assert select(bare, steps, protocol) == select(labels, steps, protocol)
        for upto in range(1, len(steps)):  # what has been shown does not depend on the steps to come
            assert select(labels, steps[:upto], protocol) == select(labels, steps, protocol)[:upto]
    for index in range(len(steps)):
        old = {one for step in steps[:index] for one in step}
        assert set(annotated(steps, index, "sequential")) - set(annotated(steps, index, "disjoint")) == old


# Pictures of VOC's train_aug in each step, overlapped and disjoint, as the split files of several repositories have it.
VOC_TRAIN = {
    (19, 1): ((10410, 548), (10034, 548)),
    (15, 5): ((9568, 2145), (8437, 2145)),
    (15, 1, 1, 1, 1, 1): ((9568, 487, 299, 491, 500, 548), (8437, 378, 299, 420, 500, 548)),
    (10, *[1] * 10): (
        (6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548),
        (3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548),
    ),
    (5, 3, 3, 3, 3, 3): ((2836, 2331, 1542, 2095, 4484, 1468), (1753, 1517, 624, 1296, 3924, 1468)),
}


@pytest.mark.parametrize("sizes", VOC_TRAIN, ids=lambda sizes: "-".join(map(str, sizes[:2])))
def test_published_sizes_of_voc_train_from_made_label_sets(sizes: tuple[int, ...]) -> None:
    """Label sets made so that a picture's last class lies in as many steps as published, and earlier ones, too."""
    overlapped, disjoint = VOC_TRAIN[sizes]
    steps, draw = steps_of(sizes), random.Random(0)
    last_step = [step for step, count in enumerate(disjoint) for _ in range(count)]
    sets = [{draw.choice(steps[step]), draw.choice((0, 255))} for step in last_step]
    for step, (many, few) in enumerate(zip(overlapped, disjoint, strict=True)):
        later = [index for index, last in enumerate(last_step) if last > step]
        for index in draw.sample(later, many - few):
            sets[index].add(draw.choice(steps[step]))
    order = draw.sample(range(len(sets)), len(sets))
    labels = [sets[index] for index in order]
    assert len(labels) == 10582
    assert tuple(map(len, select(labels, steps, "overlapped"))) == overlapped
    assert tuple(map(len, select(labels, steps, "disjoint"))) == disjoint
    assert tuple(map(len, select(labels, steps, "sequential"))) == disjoint


# Which classes the 1,449 pictures of VOC's val hold (a = aeroplane … t = tvmonitor), by how many hold just these.
VOC_VAL = """
94 c, 89 h, 81 l, 73 a, 68 s, 61 o, 56 j, 52 q, 50 d, 45 g, 44 m, 35 e, 34 f no, 32 mo, 30 bo, 29 b, 28 t, 24 p, 23 n,
21 lo r, 20 eo, 18 ko, 16 do, 15 go i, 14 os, 12 ao fg ik, 11 iko, 10 jo or, 9 fgo fo gno io, 8 ir, 7 iot pr,
6 ho it op ot, 5 bgo eio eko hr ikp ipr k pt, 4 gn hi, 3 bg co eor eot il iop lor lr rt,
2 be bfo bgp eik eiko et hlr ikr ikrt ior iort ip nop oq,
1 ad af afg ag ago beo beot bfgo bgop bhi bp cdg cdo cf cj cop cp dfgo dg dno efo eg egio egko ego eh ehp eikop eikp eit
ekop ekopr el eop ep fnq fop gjno gjo gl glo gmo gop gor gos gp gs gt hik hio hjo hl hlrt hopr hor hot hp hpt ikl iklo
iklpr ikpr ilno ilor ilp iopr irt jmo kopt lmo loq lq lt opr prt
"""


@pytest.mark.parametrize(
    ("sizes", "new", "seen"),
    [
        ((15, *[1] * 5), (1240, 85, 57, 90, 84, 74), (1240, 1277, 1329, 1353, 1421, 1449)),
        ((10, *[1] * 10), None, (869, 893, 1005, 1081, 1140, 1240, 1277, 1329, 1353, 1421, 1449)),
    ],
    ids=["15-1", "10-1"],
)
def test_published_sizes_of_voc_val(sizes: tuple[int, ...], new: tuple[int, ...] | None, seen: tuple[int, ...]) -> None:
    labels = []
    for group in VOC_VAL.split(","):
        count, *held = group.split()
        labels += [{ord(letter) - ord("a") + 1 for letter in one} for one in held for _ in range(int(count))]
    assert len(labels) == 1449
    shown = select(labels, steps_of(sizes), "overlapped")
    if new is not None:
        assert tuple(map(len, shown)) == new
    upto = [set().union(*shown[: step + 1]) for step in range(len(sizes))]
    assert tuple(map(len, upto)) == seen
    assert sum(map(len, select(labels, steps_of(sizes), "disjoint"))) == 1449


def test_partition_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "train-0.npy", np.array([4, 0]))
    np.save(tmp_path / "train-1.npy", np.array([3], np.uint16))
    assert read_partition(tmp_path, 2, 5) == [[0, 4], [3]]
    with pytest.raises(DataError, match=r"train-2\.npy: no such list; a partition cannot be computed.*train-2\.npy"):
        read_partition(tmp_path, 3, 5)
    with pytest.raises(DataError, match=r"train-0\.npy: names picture 4, but there are 4"):
        read_partition(tmp_path, 2, 4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.array([1.0]), r"expected integers \[n\], got float64 \[1\]"),
        (np.array([[1]]), r"expected integers \[n\]"),
        (np.array([], int), r"expected integers \[n\]"),
        (np.array([-1]), "names picture -1"),
        (np.array([0, 2]), "names a picture twice"),
        (np.array([3, 3]), "names a picture twice"),
        (np.array([object()]), "is not an array of integers"),
    ],
)
def test_partitions_that_are_none(tmp_path: Path, content: np.ndarray, said: str) -> None:
    np.save(tmp_path / "train-0.npy", np.array([0, 1]))
    np.save(tmp_path / "train-1.npy", content)
    with pytest.raises(DataError, match=rf"train-1\.npy: {said}"):
        read_partition(tmp_path, 2, 5)
