"""What is drawn, and how much of it is right: against counts made with numpy from the pictures and masks themselves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.mask_evaluation import (
    MaskOptions,
    MaskPrediction,
    central_square,
    draw,
    evaluate_masks,
    iou_cells,
    mean_of,
)

Folders = Callable[..., Path]
NAMES = ("background", "road", "car", "tree")
TASKS = [{"classes": ["road", "car"]}, {"classes": ["tree"]}]
# Of the view's size and others: odd ones, tall and wide, and so large that a picture is reduced to a tenth.
SIZES = [(28, 42), (31, 47), (90, 30), (30, 120), (14, 14), (300, 420), (28, 42), (56, 84)]
_LEARNED: list[tuple[Learner, Path]] = []


@pytest.fixture
def learned(tmp_path: Path, mask_folder: Folders) -> tuple[Learner, Path]:
    """A learner of two rounds, and a folder of test pictures of all sizes, with a class that it does not know."""
    if not _LEARNED:
        learner = Learner.create(
            tmp_path / "state",
            backbone="random:dinov2-tiny",
            method="clora+mib",
            image_size=(28, 42),
            settings={"training": {"epochs": 6, "lr": 1e-2, "precision": "fp32", "validation": 0.0}},
        )
        learner.learn(mask_folder(["road", "car"], 16, also=["tree"], name="first"))
        learner.learn(mask_folder(["tree"], 16, also=["road", "car"], name="second"))
        values = {"tree": 9, "road": 4, "bike": 30, "car": 5}
        test = mask_folder(["road", "car", "tree", "bike"], 8, name="test", size=SIZES, values=values, seed=5)
        for path in sorted((test / "masks").iterdir())[::2]:
            mask = np.asarray(Image.open(path)).copy()
            mask[-5:, :7] = 255
            Image.fromarray(mask).save(path)
        _LEARNED.append((learner, test))
    return _LEARNED[0]


def read(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures, and their masks as channels; 99 is the class that is not known, 255 ignored."""
    table = np.full(256, 255, np.uint8)
    table[[0, 4, 5, 9, 30]] = 0, 1, 2, 3, 99
    return tuple(  # type: ignore[return-value]
        [turn(np.asarray(Image.open(path))) for path in sorted((folder / part).iterdir())]
        for part, turn in (("images", lambda pixels: pixels), ("masks", lambda values: table[values]))
    )


def centre(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def counted(drawn: list[np.ndarray], truths: list[np.ndarray], future: str) -> np.ndarray:
    """[4, 4], pixel by pixel."""
    counts = np.zeros((4, 4), np.int64)
    for prediction, truth in zip(drawn, truths, strict=True):
        wanted = np.where(truth == 99, 0 if future == "background" else 255, truth)
        for true, found in product(range(4), range(4)):
            counts[true, found] += ((wanted == true) & (prediction == found)).sum()
    return counts


def drawn(learner: Learner, pictures: Any, **options: Any) -> list[np.ndarray]:
    return [answer.mask for answer in learner.predict(pictures, **options)]


def agree(one: np.ndarray, other: np.ndarray) -> bool:
    """The same masks; a pixel on a border may fall either way, as products are rounded by the size of the batch."""
    return one.shape == other.shape and (one != other).mean() < 1e-3


# --- masks


def test_masks_have_the_size_of_their_pictures(learned: tuple[Learner, Path]) -> None:
    learner, folder = learned
    answers = learner.predict(folder / "images")
    assert [answer.mask.shape for answer in answers] == SIZES
    assert {int(value) for answer in answers for value in np.unique(answer.mask)} == {0, 1, 2, 3}
    for answer, path in zip(answers, sorted((folder / "images").iterdir()), strict=True):
        assert isinstance(answer, MaskPrediction)
        assert answer.path == str(path)
        assert answer.mask.dtype == np.uint8
        assert answer.classes == NAMES
        assert np.array_equal(answer.image, np.asarray(Image.open(path)))
        expected = {name: (answer.mask == value).mean() for value, name in enumerate(NAMES)}
        assert answer.shares == {name: share for name, share in expected.items() if share}
        assert list(answer.shares.values()) == sorted(answer.shares.values(), reverse=True)


def test_the_best_channel_of_logits_brought_to_the_pictures_size(learned: tuple[Learner, Path]) -> None:
    """For a picture that needs no resizing: network, bilinear, argmax; written out."""
    learner, folder = learned
    picture = np.asarray(Image.open(folder / "images" / "000.png"))
    with torch.no_grad():
        logits = learner.network.predict(torch.from_numpy(picture.copy())[None])
    assert logits.shape == (1, 4, 2, 3)
    whole = torch.nn.functional.interpolate(logits, size=(28, 42), mode="bilinear", align_corners=False)
    assert np.array_equal(drawn(learner, [picture])[0], whole[0].argmax(0).numpy())


def test_no_picture_depends_on_the_others(learned: tuple[Learner, Path]) -> None:
    learner, folder = learned
    paths = sorted((folder / "images").iterdir())
    together = drawn(learner, paths)
    for order in (paths[::-1], [paths[0]] * 9 + paths):  # more than a batch of one size
        found = dict(zip(map(str, order), drawn(learner, order), strict=True))
        assert all(agree(found[str(path)], mask) for path, mask in zip(paths, together, strict=True))
    alone = [mask for path in paths for mask in drawn(learner, [path])]
    assert all(agree(one, other) for one, other in zip(alone, together, strict=True))


def test_pictures_of_any_make(learned: tuple[Learner, Path]) -> None:
    learner, folder = learned
    path = folder / "images" / "001.png"
    pixels = np.asarray(Image.open(path))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    found = drawn(learner, [Image.open(path), pixels, tensor, tensor / 255])
    assert all(np.array_equal(mask, drawn(learner, path)[0]) for mask in found)


def test_predictions_come_as_they_are_made(learned: tuple[Learner, Path]) -> None:
    """Large folders do not have to fit into memory."""
    learner, folder = learned
    paths = sorted((folder / "images").iterdir())
    answers = learner.iter_predict([*paths, folder / "images" / "000.png"])
    first = next(answers)
    assert first.path == str(paths[0])
    assert len(list(answers)) == len(paths)


# --- tiles


def test_tiles_are_drawn_one_by_one(learned: tuple[Learner, Path]) -> None:
    """A picture of twice the view in both directions: nine tiles, of each the part nearest to its middle."""
    learner, folder = learned
    picture = np.asarray(Image.open(folder / "images" / "007.png"))
    assert picture.shape == (56, 84, 3)
    (found,) = drawn(learner, [picture], tile=True)
    expected = np.full((56, 84), 77, np.uint8)
    # A quarter of 28 and 42 must overlap, so there are three along each side, and cuts in the middle of overlaps.
    for top, first, last in ((0, 0, 21), (14, 21, 35), (28, 35, 56)):
        for left, start, stop in ((0, 0, 31), (21, 31, 52), (42, 52, 84)):
            (tile,) = drawn(learner, [np.ascontiguousarray(picture[top : top + 28, left : left + 42])])
            expected[first:last, start:stop] = tile[first - top : last - top, start - left : stop - left]
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, drawn(learner, [picture])[0])


def test_small_pictures_are_not_tiled(learned: tuple[Learner, Path]) -> None:
    learner, folder = learned
    for name, (height, width) in zip(sorted((folder / "images").iterdir()), SIZES, strict=True):
        tiled, plain = drawn(learner, [name], tile=True)[0], drawn(learner, [name])[0]
        assert tiled.shape == (height, width)
        if height < 28 or width < 42 or (height, width) == (28, 42):
            assert np.array_equal(tiled, plain)


# --- the measure


@pytest.mark.parametrize("options", list(product(("ignore", "background"), (False, True), (False, True))), ids=str)
def test_counts_are_those_of_the_masks_that_are_drawn(
    options: tuple[str, bool, bool], learned: tuple[Learner, Path]
) -> None:
    learner, folder = learned
    future, crop, tile = options
    measured = learner.evaluate(folder, options=MaskOptions(future=future, crop=crop, tile=tile))  # type: ignore[arg-type]
    pictures, truths = read(folder)
    if crop:
        pictures = [np.ascontiguousarray(centre(picture)) for picture in pictures]
        truths = [centre(truth) for truth in truths]
    expected = counted(drawn(learner, pictures, tile=tile), truths, future)
    assert measured.confusion == expected.tolist()
    assert measured.pixels == expected.sum()
    assert (measured.images, measured.classes) == (8, list(NAMES))
    assert measured.version == learner.state.version.id


@pytest.mark.parametrize("background", ["include", "old", "exclude"])
def test_fractions_by_hand(background: str, learned: tuple[Learner, Path]) -> None:
    learner, folder = learned
    options = MaskOptions(background=background)  # type: ignore[arg-type]
    measured = learner.evaluate(folder, options=options)
    counts = np.array(measured.confusion)
    iou = [counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c]) for c in range(4)]
    assert min(counts.sum(1)) > 0
    assert 0.02 < min(iou) < max(iou) < 0.98
    assert measured.per_class == pytest.approx({"road": iou[1], "car": iou[2], "tree": iou[3]})
    assert measured.background == pytest.approx(iou[0])
    assert measured.new == pytest.approx(iou[3])
    assert measured.old == pytest.approx(np.mean(iou[:3] if background == "old" else iou[1:3]))
    assert measured.miou == pytest.approx(np.mean(iou[1:] if background == "exclude" else iou))


COUNTS = torch.tensor([[6, 0, 2, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_a_made_up_table() -> None:
    """IoU 6/9, 3/4; of car no true pixel but two drawn ones: 0; of tree nothing at all."""
    measured = evaluate_masks(COUNTS, 5, NAMES, TASKS, "v1", MaskOptions())
    assert measured.background == pytest.approx(6 / 9)
    assert measured.per_class == {"road": 0.75, "car": 0.0, "tree": None}
    assert measured.miou == pytest.approx((6 / 9 + 0.75 + 0) / 3)
    assert (measured.old, measured.new) == (0.375, None)
    assert (measured.pixels, measured.images, measured.version) == (12, 5, "v1")
    assert measured.as_json().keys() == {
        *(
            "version",
            "images",
            "pixels",
            "miou",
            "per_class",
            "old",
            "new",
            "background",
            "confusion",
            "classes",
            "learned_images",
        ),
    }
    assert evaluate_masks(COUNTS, 5, NAMES, TASKS, "v1", MaskOptions("old")).old == pytest.approx((6 / 9 + 0.75) / 3)
    assert evaluate_masks(COUNTS, 5, NAMES, TASKS, "v1", MaskOptions("exclude")).miou == 0.375
    assert iou_cells(COUNTS, NAMES, TASKS) == [0.375, None]


def test_nothing_measured_is_none() -> None:
    nothing = evaluate_masks(torch.zeros(4, 4, dtype=torch.int64), 0, NAMES, TASKS, "v1", MaskOptions())
    assert (nothing.miou, nothing.old, nothing.new, nothing.background) == (None, None, None, None)
    assert nothing.per_class == dict.fromkeys(NAMES[1:])
    assert mean_of([]) is mean_of([None]) is None
    assert mean_of([None, 0.5, 0.0]) == 0.25


def test_classes_of_the_masks_that_are_not_there_are_not_counted(learned: tuple[Learner, Path]) -> None:
    learner, _ = learned
    folder = _LEARNED[0][1].parent / "roads"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (42, 28), "gray").save(folder / "images" / "a.png")
    Image.new("L", (42, 28), 1).save(folder / "masks" / "a.png")
    (folder / "classes.json").write_text('["background", "road", "bike"]')
    measured = learner.evaluate(folder)
    assert measured.pixels == 28 * 42
    assert sum(measured.confusion[1]) == 28 * 42
    assert measured.per_class["road"] is not None


def test_options_are_checked() -> None:
    wrong = (({"background": "with"}, "include, old or exclude"), ({"future": "x"}, "ignore or background"))
    for options, told in wrong:
        with pytest.raises(ConfigError, match=told):
            MaskOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (1, 6)])
def test_the_central_square(shape: tuple[int, int]) -> None:
    pixels = np.arange(shape[0] * shape[1]).reshape(shape)
    assert np.array_equal(central_square(pixels), centre(pixels))
    assert central_square(np.zeros((*shape, 3))).shape == (min(shape), min(shape), 3)


def test_nothing_to_draw(learned: tuple[Learner, Path]) -> None:
    learner, _ = learned
    assert list(draw(learner.network, iter(()), (28, 42))) == []
