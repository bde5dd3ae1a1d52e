"""What a network draws into pictures, and how much of it is right: counts of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sapwood.data.decode import decode
from sapwood.data.legend import BACKGROUND
from sapwood.data.mask_store import MaskStore
from sapwood.data.mask_views import fitting_size, tiles
from sapwood.data.masks import decode_mask
from sapwood.functional.resize import argmax_at_size
from sapwood.functional.segmentation import confusion_matrix, iou_from_confusion
from sapwood.network import Network
from sapwood.progress import Progress
from sapwood.settings import check
from sapwood.world import rank
from sapwood.world import size as processes
from sapwood.world.sums import summed

_BATCH = 8


@dataclass(frozen=True)
class MaskOptions:
    """What implementations of the measure differ in; the defaults measure every pixel of every picture.

    Attributes:
        background: ``include``: it counts in ``miou``, not in ``old``; ``old``: in both (PLOP's tables); ``exclude``:
            in neither (MiB's tables).
        future: pixels of classes that are not known yet: ``ignore``, or ``background``, as which PLOP scores them.
        crop: measure the central square of each picture only, as most official codes do.
        tile: cut pictures into overlapping views at their own resolution instead of shrinking them to one.
    """

    background: Literal["include", "old", "exclude"] = "include"
    future: Literal["ignore", "background"] = "ignore"
    crop: bool = False
    tile: bool = False

    def __post_init__(self) -> None:
        check(
            (
                self.background in ("include", "old", "exclude"),
                f"background must be include, old or exclude, got {self.background!r}",
            ),
            (self.future in ("ignore", "background"), f"future must be ignore or background, got {self.future!r}"),
        )


@dataclass(frozen=True)
class MaskPrediction:
    """What is drawn into one picture.

    Attributes:
        path: as it was given.
        mask: uint8 [H, W] at the picture's size, indices of ``classes``.
        image: the picture, uint8 [H, W, 3].
        shares: fraction of the pixels by class, for classes that occur; largest first.
        classes: all names in learning order, the background first.
    """

    path: str
    mask: np.ndarray
    image: np.ndarray
    shares: dict[str, float]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class MaskEvaluation:
    """Intersection over union, from one confusion matrix over all pixels at the masks' own resolution.

    Attributes:
        version: id of the version that predicted.
        images, pixels: how many were measured; ignored pixels are not counted.
        miou: mean over classes that occur in truth or prediction, with the background unless told otherwise.
        per_class: by class name, the background left out; None for classes that occur in neither.
        old: mean over the classes of the first round; None if none of them occurs.
        new: mean over the classes of later rounds.
        background: that of the background.
        confusion: pixels [K][K], rows are the truth, in the order of ``classes``.
        classes: all names in learning order, the background first.
        learned_images: how many different pictures among them were learned from, by the bytes of the picture,
            under whatever mask; None where that cannot be said.
    """

    version: str
    images: int
    pixels: int
    miou: float | None
    per_class: dict[str, float | None]
    old: float | None
    new: float | None
    background: float | None
    confusion: list[list[int]]
    classes: list[str]
    learned_images: int | None = 0

    def as_json(self) -> dict[str, Any]:
        """What ``sapwood evaluate --json`` prints."""
        return dict(self.__dict__)


def evaluate_masks(
    confusion: Tensor,
    images: int,
    names: Sequence[str],
    tasks: Sequence[Mapping[str, Any]],
    version: str,
    options: MaskOptions,
) -> MaskEvaluation:
    """Fractions from counts of pixels [K, K]."""
    iou = iou_from_confusion(confusion).tolist()
    value = {name: None if share != share else share for name, share in zip(names, iou, strict=True)}
    first = list(tasks[0]["classes"]) if tasks else []
    later = [name for name in names if name not in first and name != BACKGROUND]
    with_background = {"include": (), "old": (BACKGROUND,), "exclude": ()}[options.background]
    everything = [name for name in names if name != BACKGROUND or options.background != "exclude"]
    return MaskEvaluation(
        version=version,
        images=images,
        pixels=int(confusion.sum()),
        miou=mean_of(value[name] for name in everything),
        per_class={name: value[name] for name in names if name != BACKGROUND},
        old=mean_of(value[name] for name in (*with_background, *first)),
        new=mean_of(value[name] for name in later),
        background=value[BACKGROUND],
        confusion=confusion.tolist(),
        classes=list(names),
    )


def iou_cells(confusion: Tensor, names: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Mean IoU over the classes that each round brought; None where none of them occurs."""
    iou = iou_from_confusion(confusion).tolist()
    value = {name: None if share != share else share for name, share in zip(names, iou, strict=True)}
    return [mean_of(value.get(name) for name in task["classes"]) for task in tasks]


def mean_of(values: Any) -> float | None:
    """Mean of what is not None; None if nothing is left."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def count_pixels(
    network: Network,
    tests: MaskStore,
    names: Sequence[str],
    size: Sequence[int],
    options: MaskOptions,
    progress: Progress,
    stop: Callable[[], None] = lambda: None,
    look: Callable[[Tensor], None] = lambda counts: None,
) -> Tensor:
    """Pixels [K, K] of truth against prediction, at the masks' own resolution; ``look`` gets those of each picture.

    Where masks label some classes alone (``Picture.annotated``), background that is drawn as another class counts
    nowhere: it may be of that class. Nor is a class measured there that has no true pixel: what is drawn as it counts
    against the class that is there, not against itself.
    """
    legend = tests.pictures.legend
    table = legend.lookup({name: index for index, name in enumerate(names)}, others=options.future)
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    progress.start("predicting", len(tests))
    own = tests.pictures.subset(range(rank(), len(tests), processes()))
    truths: list[np.ndarray] = []

    def pictures() -> Iterator[np.ndarray]:
        for picture in own:
            stop()
            truth = table[decode_mask(picture, legend, size=None)]
            image = decode(picture)  # whole, as predictions see it; the store's are reduced
            if options.crop:
                truth, image = central_square(truth), central_square(image)
            truths.append(truth)
            yield image

    for picture, found in zip(own, draw(network, pictures(), size, tile=options.tile), strict=True):
        truth = truths.pop(0)
        drawn = confusion_matrix(torch.from_numpy(found), torch.from_numpy(truth), len(names))
        if picture.annotated is not None:
            drawn[0, [name not in picture.annotated and name != BACKGROUND for name in names]] = 0
        look(drawn)
        counts += drawn
        progress.advance(processes())
    progress.finish()
    counts = summed(counts)
    return counts if all(picture.annotated is None for picture in tests.pictures) else _only_measured(counts)


def _only_measured(counts: Tensor) -> Tensor:
    """Counts without the columns of classes that have no true pixel; of the others these pixels are still missing.

    >>> _only_measured(torch.tensor([[5, 1, 2], [0, 6, 3], [0, 0, 0]])).tolist()
    [[5, 1, 0], [3, 6, 0], [0, 0, 0]]
    """
    unseen = counts.sum(1) == 0
    unseen[0] = False
    counts[1:, 0] += counts[1:, unseen].sum(1)
    counts[:, unseen] = 0
    return counts


def draw(
    network: Network,
    pictures: Iterator[np.ndarray],
    size: Sequence[int],
    *,
    tile: bool = False,
) -> Iterator[np.ndarray]:
    """The best channel of every pixel, uint8 [H, W], of pictures uint8 [H, W, 3].

    Pictures whose views are of one size go through the network together; none depends on another.
    """
    if tile:
        for image in pictures:
            yield _draw_tiles(network, image, size)
        return
    waiting: list[tuple[np.ndarray, tuple[int, int]]] = []
    for image in pictures:
        view = (_view(network, image, size), (image.shape[0], image.shape[1]))
        if waiting and (waiting[0][0].shape != view[0].shape or len(waiting) == _BATCH):
            yield from _flush(network, waiting)
            waiting = []
        waiting.append(view)
    if waiting:
        yield from _flush(network, waiting)


@torch.no_grad()
def _flush(network: Network, waiting: Sequence[tuple[np.ndarray, tuple[int, int]]]) -> Iterator[np.ndarray]:
    logits = network.predict(torch.from_numpy(np.stack([view for view, _ in waiting])))
    decide = network.head.decision if network.head.decides else None
    for row, (_, wanted) in zip(logits, waiting, strict=True):
        yield argmax_at_size(row[None], wanted, decide)[0].to(torch.uint8).cpu().numpy()


def _draw_tiles(network: Network, image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Tile by tile; of each the part far from its edges is kept, so that memory does not grow with the picture."""
    height, width = image.shape[:2]
    if height < size[0] or width < size[1]:
        return next(draw(network, iter([image]), size))
    found = np.empty((height, width), np.uint8)
    tile = (size[0], size[1])
    for top, left, (start, first, end, last) in tiles((height, width), tile):
        piece = image[top : top + tile[0], left : left + tile[1]]
        drawn = next(_flush(network, [(piece, tile)]))
        found[start:end, first:last] = drawn[start - top : end - top, first - left : last - left]
    return found


def _view(network: Network, image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    info = network.backbone.info
    height, width = size if info.fixed_size else fitting_size(image.shape[:2], (size[0], size[1]), info.patch)
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def central_square(pixels: np.ndarray) -> np.ndarray:
    """The largest square in the middle of [H, W, ...].

    >>> central_square(np.arange(4)[None]).tolist()
    [[1]]
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])
