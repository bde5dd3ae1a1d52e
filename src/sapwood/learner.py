"""The learner: a state folder that learns, predicts, is measured, and goes back when told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from sapwood.assembly import (
    Overrides,
    assemble,
    merge_settings,
    new_record,
    resolve_precision,
    training_config,
)
from sapwood.backbones import create_backbone, resolve_default
from sapwood.costs import estimate_round
from sapwood.data.given import as_pictures, read_test_data
from sapwood.data.names import class_name
from sapwood.data.pictures import Pictures
from sapwood.data.sources import read_data
from sapwood.data.store import PictureStore
from sapwood.errors import ConfigError, DataError
from sapwood.evaluation import Evaluation, Prediction, count_confusion, evaluate_counts, name_pictures
from sapwood.history import after_measuring, commit_round
from sapwood.methods import find_method
from sapwood.network import Network
from sapwood.objectives.base import Objective
from sapwood.progress import Progress
from sapwood.rounds import begin, learn_round, plan_of, prepare
from sapwood.settings import TrainingConfig, build, plain
from sapwood.state import State, Version
from sapwood.training import stop_on_signals

DEFAULT_METHOD = "ranpac"
_HEADROOM = 1.25


class Learner:
    """Learns new classes round by round into a state folder.

    A round is all or nothing: the folder holds the version before it or the one after it, whatever happens.

    >>> import tempfile, torch
    >>> folder = tempfile.mkdtemp() + "/shades"
    >>> learner = Learner.create(folder, backbone="random:dinov2-tiny", method="ncm")
    >>> dark, light = torch.zeros(3, 28, 28), torch.ones(3, 28, 28)
    >>> _ = learner.learn([(dark, "night"), (light, "day")])
    >>> learner.predict([light])[0].label
    'day'
    """

    def __init__(
        self, state: State, device: str | torch.device | None = None, *, memory: dict[str, Tensor] | None = None
    ) -> None:
        self.state = state
        self.memory = memory
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._parts: tuple[Network, Objective] | None = None

    @classmethod
    def create(
        cls,
        path: str | PathLike[str],
        *,
        backbone: str | None = None,
        method: str = DEFAULT_METHOD,
        head: str | None = None,
        image_size: int | None = None,
        seed: int = 0,
        settings: Overrides | None = None,
        device: str | torch.device | None = None,
    ) -> Learner:
        """Make a state folder that has learned nothing yet.

        Raises:
            UsageError: an unknown name or setting, or a folder that holds other things.
        """
        recipe = find_method(method, head)
        merge_settings(recipe, settings or {})
        made = create_backbone(backbone or resolve_default(), image_size)
        record = new_record(made, recipe, image_size or made.info.image_size, seed, settings or {})
        return cls(State.create(path, record), device)

    @classmethod
    def open(cls, path: str | PathLike[str], *, device: str | torch.device | None = None) -> Learner:
        """Open the current version of a state folder."""
        return cls(State.open(path), device)

    @property
    def record(self) -> Mapping[str, Any]:
        """What the current version records."""
        return self.state.version.record

    @property
    def classes_(self) -> tuple[str, ...]:
        """Names of the classes in learning order."""
        return tuple(entry["name"] for entry in self.record["classes"])

    @property
    def accuracy_(self) -> list[list[float | None]]:
        """accuracy[i][j]: fraction right on round j's classes after round i; None where it was not measured."""
        return [list(row) for row in self.record["accuracy"]]

    @property
    def network(self) -> Network:
        """The network of the current version."""
        return self._load()[0]

    def learn(
        self,
        data: Any,
        *,
        task: str | None = None,
        test: Any = None,
        training: Mapping[str, Any] | None = None,
        skip_bad: bool = False,
        restart: bool = False,
        progress: Progress | None = None,
    ) -> Learner:
        """Learn one round: new classes, more pictures of known ones, or both; then commit it as a new version.

        A round that was killed goes on from its last checkpoint when it is asked for again with the same data and
        options, and ends with the same tensors.

        Args:
            data: class folder, CSV, saved data set, ``Pictures`` or pairs (picture, class name).
            task: name of the round.
            test: labelled pictures of any known classes, measured after training; they choose nothing.
            training: fields of ``TrainingConfig`` for this and later rounds.
            skip_bad: leave unreadable pictures out instead of stopping.
            restart: throw a half-learned round away.
            progress: listens to what happens.

        Raises:
            UsageError: something the user can mend; the state is unchanged.
            Interrupted: stopped after a checkpoint.
        """
        progress = progress or Progress()
        config = self._training(training or {})
        tasks = self.record["tasks"]
        name = f"task-{len(tasks) + 1}" if task is None else class_name(task, "--task", "round")
        store = self._store(read_data(data), skip_bad, progress, config.workers)
        tested = None if test is None else self._store(read_test_data(test), skip_bad, progress, config.workers)
        round_ = prepare(store, self.classes_, len(tasks), name, self.record["seed"], config.validation)
        if len(round_.names) < 2:
            progress.note("only one class is known so far; every picture will be called by it until there is a second")
        for label in store.pictures.classes:
            if store.pictures.labels.count(label) == 1:
                progress.note(f"class {label!r} has a single picture; more would help")
        if tested is not None:
            self._known_only(tested, round_.names)
            if shared := len(set(store.sha256) & set(tested.sha256)):
                progress.note(
                    f"{shared} of the test pictures are among the training pictures: their accuracy is too high"
                )

        with self.state.writer(), stop_on_signals() as stop:
            network, objective = self._load(config)  # first: what cannot be loaded must not leave a plan behind
            if begin(self.state, plan_of(self.record, round_, plain(config)), restart):
                progress.note(f"this round was already committed as {self.state.version.id}")
                return self
            self._parts = None  # what follows changes them; only a commit makes them the current version's
            network.unmerge()
            progress.note(f"estimate: {estimate_round(network, config, round_, self.record['image_size'])}")
            learned = learn_round(
                network,
                objective,
                round_,
                config,
                image_size=self.record["image_size"],
                checkpoints=self.state.training,
                progress=progress,
                stop=stop,
            )
            confusion = None
            if tested is not None:
                size = self.record["image_size"]
                confusion = count_confusion(network, tested, round_.names, size, progress, stop.check)
            commit_round(self.state, network, objective, round_, config, learned, confusion)
            self.state.training.clear()
        self._parts = (network, objective)
        return self

    def predict(
        self, pictures: Any, *, top: int = 5, skip_bad: bool = False, progress: Progress | None = None
    ) -> list[Prediction]:
        """Name the class of each picture, in the order given; no answer depends on another picture.

        Args:
            pictures: paths of files and folders, or pictures: Pillow images, uint8 arrays [H, W, 3], tensors.
            top: how many classes to list.
            skip_bad: leave unreadable pictures out.
            progress: listens to what happens.
        """
        classes = self._some_classes()
        store = self._store(as_pictures(pictures), skip_bad, progress or Progress(), 0)
        return name_pictures(self.network, store, classes, self.record["image_size"], top, progress or Progress())

    def evaluate(
        self, data: Any, *, record: bool = False, skip_bad: bool = False, progress: Progress | None = None
    ) -> Evaluation:
        """Measure on labelled pictures of known classes; with ``record`` the last row of the matrix is filled in."""
        classes = self._some_classes()
        store = self._store(read_test_data(data), skip_bad, progress or Progress(), 0)
        self._known_only(store, classes)
        size = self.record["image_size"]
        confusion = count_confusion(self.network, store, classes, size, progress or Progress())
        if record:
            self._record_row(confusion)
        return evaluate_counts(confusion, classes, self.record["tasks"], self.state.version.id)

    def undo(self) -> Version:
        """Go back by one change; the step back is a new version itself."""
        with self.state.writer():
            version = self.state.undo()
            self.state.training.clear()
        self._parts = None
        return version

    def merge(self) -> Learner:
        """Put the adapter into the weights in memory: predictions stay the same and cost what the backbone costs."""
        self.network.merge()
        return self

    def _load(self, config: TrainingConfig | None = None) -> tuple[Network, Objective]:
        """Network and objective, computing as the last round did or as ``config`` says."""
        precision = resolve_precision((config or training_config(self.record)).precision, self.device)
        if self._parts is None or self._parts[0].precision != precision:
            self._parts = assemble(self.record, self.state, self.device, precision)
            self._parts[0].memory = self.memory
        return self._parts

    def _training(self, overrides: Mapping[str, Any]) -> TrainingConfig:
        settings = self.record["settings"]["training"]
        if not overrides:
            return training_config(self.record)
        return build(TrainingConfig, {**settings, **overrides}, "training")

    def _store(self, pictures: Pictures, skip_bad: bool, progress: Progress, workers: int) -> PictureStore:
        if not len(pictures):
            raise DataError("no pictures were given")
        shorter = round(self.record["image_size"] * _HEADROOM)
        progress.start("reading pictures", len(pictures))
        store = PictureStore(
            pictures, shorter, skip_bad=skip_bad, workers=workers, progress=lambda done, total: progress.advance(1)
        )
        progress.finish()
        for bad, reason in store.bad:
            progress.note(f"skipped {bad}: {reason}")
        return store

    def _some_classes(self) -> tuple[str, ...]:
        if not self.classes_:
            raise ConfigError(f"{self.state.path} has learned nothing yet; run: sapwood learn {self.state.path} FOLDER")
        return self.classes_

    def _known_only(self, store: PictureStore, classes: Sequence[str]) -> None:
        unknown = [name for name in store.pictures.classes if name not in classes]
        if unknown:
            raise DataError(
                f"unknown class {', '.join(map(repr, unknown[:5]))} in the test pictures; known: {', '.join(classes)}"
            )

    def _record_row(self, confusion: Tensor) -> None:
        with self.state.writer():
            self.state.commit(after_measuring(self.record, self.classes_, confusion), {}, "evaluate --record")
