"""Drawing masks: one class for every pixel, and a background for what belongs to none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sapwood.backbones.base import BackboneInfo
from sapwood.data.decode import decode
from sapwood.data.kept import Share
from sapwood.data.legend import BACKGROUND, IGNORE, Colour, Legend
from sapwood.data.mask_store import MaskStore, check_side, visible_share
from sapwood.data.masks import MaskedPictures, read_mask_split, read_masks
from sapwood.data.names import check_class_names
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.similar import similar_names
from sapwood.data.sources import has_splits
from sapwood.data.splits import validation_split
from sapwood.errors import ConfigError, DataError
from sapwood.kinds.base import Kind, Round, Size, name_of
from sapwood.kinds.mask_probes import kept_masks, masked_pictures, shown_classes
from sapwood.kinds.mask_round import MaskRound
from sapwood.mask_evaluation import (
    MaskEvaluation,
    MaskOptions,
    MaskPrediction,
    count_pixels,
    draw,
    evaluate_masks,
    iou_cells,
)
from sapwood.network import Network
from sapwood.probes import Probe, Shown
from sapwood.progress import Progress
from sapwood.record import task_names
from sapwood.task import Task

_HEADROOM = 1.25
_VISIBLE = 0.5  # share of a class's pixels below which people are told


class Segmentation(Kind):
    """Pictures in, masks out."""

    name = "segmentation"
    default_method = "clora+mib"
    measure = "IoU"

    def read(self, data: Any, **options: Any) -> MaskedPictures:
        """Pictures with masks; option ``unlabelled`` as in ``read_masks``."""
        return read_masks(data, unlabelled=options.get("unlabelled", "background"))

    def read_tests(self, data: Any) -> MaskedPictures:
        """The test part where the data come in parts, else all."""
        if isinstance(data, str | Path) and has_splits(data):
            return read_mask_split(data, "test")
        return read_masks(data)

    def store(
        self,
        pictures: Pictures,
        size: Size,
        *,
        skip_bad: bool,
        workers: int,
        progress: Callable[[int, int], None],
        least: int = 1,
        share: Share | None = None,
    ) -> MaskStore:
        """Pictures and masks decoded at a quarter above the size of views."""
        assert isinstance(pictures, MaskedPictures)
        reading: dict[str, Any] = {"skip_bad": skip_bad, "workers": workers, "progress": progress, "least": least}
        return MaskStore(pictures, round(min(_pair(size)) * _HEADROOM), share=share, **reading)

    def prepare(
        self,
        store: MaskStore,
        known: Sequence[str],
        index: int,
        name: str,
        seed: int,
        validation: float,
        size: Size,
        cell: int = 1,
    ) -> MaskRound:
        """Split the pictures; classes are those whose pixels occur, in the order of their values."""
        legend = store.pictures.legend
        pixels: Counter[str] = Counter()
        for value, count in enumerate(store.counts.sum(0).tolist()):
            if count and (label := legend.names.get(value)) is not None:
                pixels[label] += count
        present = [label for label in legend.classes if pixels[label]]
        new = [label for label in present if label not in known]
        if not new and (missing := [label for label in legend.classes if label not in known]):
            raise DataError(
                f"no mask holds a pixel of the new classes {', '.join(map(repr, missing[:5]))}; "
                "label them, or take them out of the classes file"
            )
        if not present:
            raise DataError(
                "no mask holds a pixel of any class; only background and ignored pixels (255 always is) were found"
            )
        check_class_names(present, "the new masks", known)
        height, width = _pair(size)
        names = (*(known or (BACKGROUND,)), *new)
        if len(names) > IGNORE:
            raise DataError(
                f"{len(names) - 1} classes do not fit into masks of 8 bits, which hold {IGNORE - 1} beside the "
                "background; learn the others into another state"
            )
        channel = {label: number for number, label in enumerate(names)}
        train, held = validation_split([name] * len(store), validation, seed)
        task = Task(
            index,
            name,
            tuple(channel[label] for label in new),
            tuple(sorted(channel[label] for label in present)),
            len(names),
            seed,
        )
        shares = visible_share(store, legend, (height // cell, width // cell))
        hidden = {label: share for label in present if (share := shares.get(label, 0.0)) < _VISIBLE}
        absent = tuple(label for label in legend.classes if label not in channel)
        stores = (store.subset(train), store.subset(held))
        return MaskRound(task, names, *stores, (height, width), legend.lookup(channel), hidden, absent)

    def check_tests(
        self,
        tests: MaskStore,
        names: Sequence[str],
        former: Mapping[str, str] | None = None,
        options: MaskOptions | None = None,
    ) -> list[str]:
        """Classes that are not known count as ``options`` say; said, not refused, but for former names."""
        classes = tests.pictures.legend.classes
        if not set(classes) & set(names):
            raise DataError(
                f"none of the classes in the masks to measure on is known: {', '.join(map(repr, classes[:5]))}; "
                f"known: {', '.join(names)}"
            )
        future = [name for name in classes if name not in names]
        if renamed := [name for name in future if name in (former or {})]:
            today = ", ".join(f"{name!r} is {(former or {})[name]!r}" for name in renamed[:5])
            raise DataError(f"classes of the masks to measure on have other names today: {today}; name them so there")
        if not future:
            return []
        counted = "count as background" if (options or MaskOptions()).future == "background" else "are not measured"
        near = "".join(f" ({name!r} is named nearly like {other!r})" for name, other in similar_names(future, names))
        return [f"not known by these names, so their pixels {counted}: {', '.join(future)}{near}"]

    def confusion(
        self,
        network: Network,
        tests: MaskStore,
        names: Sequence[str],
        size: Size,
        progress: Progress,
        check: Callable[[], None] = lambda: None,
        options: MaskOptions | None = None,
    ) -> Tensor:
        """Pixels [K, K], truth against prediction."""
        return count_pixels(network, tests, names, _pair(size), options or MaskOptions(), progress, check)

    def shown(self, store: MaskStore) -> list[Shown]:
        """The classes that have pixels in each mask."""
        return shown_classes(store)

    def probes(self, store: MaskStore, round_: Round) -> list[Probe]:
        """Pictures and masks, which label the round's classes alone."""
        assert isinstance(round_, MaskRound)
        return kept_masks(store, round_.table, round_.task.annotated, round_.names)

    def probe_pictures(self, probes: Sequence[Probe]) -> MaskedPictures:
        """Each with the classes that its mask labels."""
        return masked_pictures(probes)

    def cells(self, confusion: Tensor, names: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Mean IoU over each round's classes."""
        return iou_cells(confusion, names, tasks)

    def measured_on(
        self, tests: MaskStore, tasks: Sequence[Mapping[str, Any]], options: MaskOptions | None = None
    ) -> list[str]:
        """All pictures with their masks: any of them may hold pixels that are taken for a class of the round."""
        chosen, legend = options or MaskOptions(), tests.pictures.legend
        counted = f"{chosen.future} {chosen.crop} {chosen.tile}"
        return [
            name_of([*tests.sha256, counted, repr([_values(legend, name) for name in task["annotated"]])])
            for task in tasks
        ]

    def summary(self, confusion: Tensor, names: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Mean IoU over all, old and new classes, of the background, and of each class, with its pixels."""
        measured = evaluate_masks(confusion, 0, names, tasks, "", MaskOptions()).as_json()
        counts = {name: count for name, count in zip(names, confusion.sum(1).tolist(), strict=True) if count}
        return {**{key: measured[key] for key in ("miou", "old", "new", "background", "per_class")}, "counts": counts}

    def evaluation(
        self,
        confusion: Tensor,
        images: int,
        record: Mapping[str, Any],
        version: str,
        options: MaskOptions | None = None,
    ) -> MaskEvaluation:
        """IoU from counts."""
        return evaluate_masks(confusion, images, task_names(record), record["tasks"], version, options or MaskOptions())

    def predict(
        self,
        network: Network,
        pictures: Pictures,
        record: Mapping[str, Any],
        *,
        skip_bad: bool,
        progress: Progress,
        **options: Any,
    ) -> Iterator[MaskPrediction]:
        """A mask at the size of each picture; option ``tile`` as in ``MaskOptions``."""
        names = task_names(record)
        progress.start("predicting", len(pictures))
        decoded: list[tuple[Picture, np.ndarray]] = []

        def images() -> Iterator[np.ndarray]:
            for picture in pictures:
                try:
                    image = decode(picture)
                    check_side(picture.name, image.shape[:2], network.backbone.info.patch)
                except DataError as error:
                    if not skip_bad:
                        raise
                    progress.note(f"skipped {error}")
                    continue
                decoded.append((picture, image))
                yield image

        for mask in draw(network, images(), _pair(record["image_size"]), tile=options.get("tile", False)):
            picture, image = decoded.pop(0)
            counts = np.bincount(mask.reshape(-1), minlength=len(names)) / mask.size
            order = np.argsort(-counts, kind="stable")
            shares = {names[index]: float(counts[index]) for index in order if counts[index]}
            progress.advance(1)
            yield MaskPrediction(picture.name, mask, image, shares, names)
        progress.finish()

    def view_size(self, wanted: Size | None, info: BackboneInfo) -> Size:
        """(height, width), by default the backbone's square; both multiples of the patch."""
        height, width = _pair(info.image_size if wanted is None else wanted)
        if height % info.patch or width % info.patch or not height or not width:
            near = "x".join(str(max(1, round(side / info.patch)) * info.patch) for side in (height, width))
            raise ConfigError(f"{height}x{width} px do not divide into patches of {info.patch} px; take {near}")
        return height, width


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _values(legend: Legend, name: str) -> list[tuple[int, list[Colour]]]:
    """The values, and the colours for them, that masks draw a class with."""
    colours = sorted((legend.colours or {}).items())
    values = [value for value, each in legend.names.items() if each == name]
    return [(value, [colour for colour, of in colours if of == value]) for value in values]
