"""What a folder of masks becomes for a round: channels, targets, what is measured, what is said and refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.backbones import create_backbone
from sapwood.data.legend import BACKGROUND, Legend
from sapwood.data.masks import MaskedPictures
from sapwood.data.pictures import Picture, Pictures
from sapwood.errors import ConfigError, DataError
from sapwood.heads.dense import DenseConfig, DenseHead
from sapwood.kinds import KINDS, kind_of
from sapwood.kinds.mask_round import MaskRound
from sapwood.kinds.segmentation import Segmentation
from sapwood.objectives.base import Outputs
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig

KIND = Segmentation()
LEGEND = Legend({0: BACKGROUND, 1: "road", 2: "car", 3: "tree", 9: None})
H, W = 28, 42


def pictures(values: Sequence[Sequence[int]], legend: Legend = LEGEND) -> MaskedPictures:
    """Pictures whose masks are cut into columns of these values."""
    random = np.random.default_rng(0)
    made = []
    for index, columns in enumerate(values):
        mask = np.repeat(np.array(columns, np.uint8), W // len(columns))[None].repeat(H, 0)
        made.append(Picture(f"p{index}", random.integers(0, 255, (H, W, 3), np.uint8), mask=np.ascontiguousarray(mask)))
    return MaskedPictures(made, legend)


def prepare(given: MaskedPictures, known: Sequence[str] = (), index: int = 0, **more: Any) -> MaskRound:
    store = KIND.load(given, (H, W), Progress(), skip_bad=False)
    options = {"name": "a", "seed": 0, "validation": 0.0, "size": (H, W), "cell": 14} | more
    return KIND.prepare(store, known, index, **options)


def test_which_data_are_masks(picture_folder: Callable[..., Path], mask_folder: Callable[..., Path]) -> None:
    assert kind_of(mask_folder(["road"], 1)) is KINDS["segmentation"]
    assert kind_of(pictures([[1]])) is KINDS["segmentation"]
    assert kind_of(picture_folder(["images", "cat"], 1)) is KINDS["classification"]
    assert kind_of(Pictures()) is kind_of(Path("nowhere")) is KINDS["classification"]


def test_channels_of_a_first_round() -> None:
    """The background is channel 0; classes follow in the order of their values, those without a pixel are left out."""
    round_ = prepare(pictures([[3, 0], [2, 9]]))
    assert round_.names == (BACKGROUND, "car", "tree")
    task = round_.task
    assert (task.new, task.annotated, task.known, task.index) == ((1, 2), (1, 2), 3, 0)
    assert round_.table[[0, 1, 2, 3, 9, 255]].tolist() == [0, 255, 1, 2, 255, 255]


def test_channels_of_a_later_round() -> None:
    known = (BACKGROUND, "tree", "sky", "road")
    round_ = prepare(pictures([[2, 3], [3, 0]]), known, index=1)
    assert round_.names == (*known, "car")
    assert (round_.task.new, round_.task.annotated, round_.task.known) == ((4,), (1, 4), 5)
    assert round_.table[[0, 1, 2, 3]].tolist() == [0, 3, 4, 1]
    fewer = Legend({0: BACKGROUND, 1: "road", 3: "tree"})
    only_known = prepare(pictures([[3, 1]], fewer), known, index=2)
    assert (only_known.names, only_known.task.new, only_known.task.annotated) == (known, (), (1, 3))


def test_one_name_may_have_several_values() -> None:
    legend = Legend({0: BACKGROUND, 4: "car", 5: "van", 6: "car"})
    round_ = prepare(pictures([[6, 0, 5]], legend))
    assert round_.names == (BACKGROUND, "car", "van")
    assert round_.table[[0, 4, 5, 6]].tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("values", "known", "told"),
    [
        ([[0, 0], [0, 9]], (), "no mask holds a pixel of the new classes 'road', 'car', 'tree'"),
        ([[1, 0]], (BACKGROUND, "road"), "no mask holds a pixel of the new classes 'car', 'tree'; label them, or"),
        ([[255, 9]], (BACKGROUND, "road", "car", "tree"), "no mask holds a pixel of any class; only background and"),
        ([[1, 0]], (BACKGROUND, "Road"), "letter case"),
    ],
)
def test_rounds_that_teach_nothing(values: list[list[int]], known: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        prepare(pictures(values), known, index=1 if known else 0)
    assert str(caught.value).isprintable()


def test_targets_of_whole_pictures() -> None:
    """The mask's columns as channels, at the size of the view; 9 is ignored."""
    round_ = prepare(pictures([[0, 1, 9, 2, 255, 3]]), (BACKGROUND, "car"), index=1)
    (batch,) = round_.feed(TrainingConfig(augment=False), stays=False).batches(0, 0)
    assert batch.targets.shape == (1, H, W)
    assert batch.targets[0, 0].tolist() == np.repeat([0, 2, 255, 1, 255, 3], 7).tolist()
    assert (batch.targets == batch.targets[:, :1]).all()
    assert batch.images.shape == (1, H, W, 3)


def test_the_manifest_and_what_the_digest_depends_on() -> None:
    given = pictures([[1, 0], [2, 0], [1, 2], [2, 1]] * 3)
    round_ = prepare(given)
    assert [row["split"] for row in round_.manifest()] == ["train"] * 12
    assert len({row["sha256"] for row in round_.manifest()}) == 12
    assert round_.digest() == prepare(given).digest()
    others = [
        prepare(given, (BACKGROUND, "car"), index=1),  # another channel
        prepare(given.relabelled(LEGEND.without_background())),
        prepare(given.subset([0, 1])),
        prepare(given, validation=0.4),
    ]
    assert len({round_.digest(), *(other.digest() for other in others)}) == 5


def test_pictures_held_out_are_drawn_by_the_seed() -> None:
    given = pictures([[1, 0], [2, 0]] * 6)
    splits = [[row["split"] for row in prepare(given, validation=0.25, seed=seed).manifest()] for seed in (0, 0, 1)]
    held = [{row["sha256"] for row in prepare(given, validation=0.25, seed=s).manifest()[9:]} for s in (0, 0, 1)]
    assert splits[0] == ["train"] * 9 + ["validation"] * 3
    assert held[0] == held[1] != held[2]
    assert len(prepare(given, validation=0.25)) == 12


class Fixed(NamedTuple):
    """A feed and a network at once: batches with targets, and logits that were thought up."""

    targets: Tensor
    logits: Tensor
    batch_size = 1

    @property
    def count(self) -> int:
        return len(self.targets)

    def batches(self, epoch: int, start: int, size: int | None = None, part: Any = None) -> Iterator[Any]:
        yield from (Fixed(target[None], logit[None]) for target, logit in zip(self.targets, self.logits, strict=True))

    def forward(self, model: Any, teacher: None, batch: Any) -> tuple[Outputs, None]:
        return Outputs(batch.logits), None


def test_validation_counts_other_old_classes_as_the_background_they_are_labelled() -> None:
    """Known: background, car, and now tree. A pixel drawn as car is right where background was labelled."""
    round_ = prepare(pictures([[3, 0]]), (BACKGROUND, "car"), index=1)
    targets = torch.tensor([[[2, 2, 2, 0, 0, 255]], [[2, 0, 0, 0, 0, 0]]])
    drawn = torch.tensor([[[2, 2, 1, 1, 2, 2]], [[2, 0, 0, 1, 1, 0]]])
    logits = torch.nn.functional.one_hot(drawn, 3).permute(0, 3, 1, 2).float()
    feed = Fixed(targets, logits)
    network: Any = SimpleNamespace(head=DenseHead(DenseConfig(), 4))
    # tree: 3 pixels right, 1 missed, 1 too many
    assert round_.validate(network, feed) == pytest.approx(3 / 5)
    nothing = Fixed(torch.zeros(1, 1, 6, dtype=torch.int64), logits[:1])
    assert round_.validate(network, nothing) is None


def test_validation_draws_as_predictions_do() -> None:
    """The unknown class, channel 3, wins three pixels; they are background, and so is one where the two share."""
    round_ = prepare(pictures([[3, 0]]), (BACKGROUND, "car"), index=1)
    targets = torch.tensor([[[2, 2, 2, 0, 0, 0]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[2, 2, 3, 3, 3, 2]]]), 4).permute(0, 3, 1, 2).float() * 18 - 9
    logits[0, 0, 0, 5] = logits[0, 3, 0, 5] = 4.5  # 0.989 twice, against 0.9999 of the class
    network: Any = SimpleNamespace(head=DenseHead(DenseConfig(background="unknown"), 4))
    assert round_.validate(network, Fixed(targets, logits)) == pytest.approx(2 / 3)


def test_what_the_grid_cannot_show_is_said() -> None:
    """Seven pixels of a cell's fourteen columns beside five of another class: one is shown, the other is not."""
    mask = np.zeros((H, W), np.uint8)
    mask[:, :8], mask[:, 8:14] = 1, 2
    given = MaskedPictures([Picture("p", np.zeros((H, W, 3), np.uint8), mask=mask)], LEGEND)
    round_ = prepare(given)
    assert round_.hidden == {"car": 0.0}
    absent, line = round_.remarks()
    assert absent == "no mask holds a pixel of 'tree': not learned"
    assert "car (0%)" in line
    assert "--image-size" in line
    finer = prepare(given, cell=2)
    assert (finer.hidden, finer.remarks()) == ({}, [absent])


def test_masks_to_measure_on() -> None:
    known = (BACKGROUND, "road", "car")
    store = KIND.load(pictures([[1, 3]]), (H, W), Progress(), skip_bad=False)
    assert KIND.check_tests(store, known) == ["not known by these names, so their pixels are not measured: tree"]
    assert KIND.check_tests(store, (*known, "tree")) == []
    with pytest.raises(DataError, match="none of the classes in the masks to measure on is known"):
        KIND.check_tests(store, (BACKGROUND, "sky"))


@pytest.mark.parametrize(
    ("wanted", "size"), [(28, (28, 28)), ((28, 42), (28, 42)), ([42, 14], (42, 14)), (None, (224, 224))]
)
def test_sizes_of_views(wanted: Any, size: tuple[int, int]) -> None:
    info = create_backbone("random:dinov2-tiny", None if wanted is None else 28).info
    if wanted is None:
        size = KIND.view_size(info.image_size, info)
    assert KIND.view_size(wanted, info) == size


def test_sizes_that_do_not_divide() -> None:
    info = create_backbone("random:dinov2-tiny", 28).info
    with pytest.raises(ConfigError, match="30x50 px do not divide into patches of 14 px; take 28x56"):
        KIND.view_size((30, 50), info)
    with pytest.raises(ConfigError, match="take 14x28"):
        KIND.view_size((0, 28), info)


def test_pictures_are_reduced_to_a_quarter_above_the_view() -> None:
    large = Picture("large", np.zeros((300, 420, 3), np.uint8), mask=np.ones((300, 420), np.uint8))
    store = KIND.load(MaskedPictures([large], LEGEND), (28, 42), Progress(), skip_bad=False)
    assert store[0].shape == (35, 49, 3)
    assert store.counts[0, 1] == 300 * 420  # counted before
    with pytest.raises(DataError, match="no pictures were given"):
        KIND.load(MaskedPictures([], LEGEND), (28, 42), Progress(), skip_bad=False)
