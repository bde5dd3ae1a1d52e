"""The learner: a state folder that learns, predicts, is measured, and goes back when told to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from sapwood import assembly, world
from sapwood.acceptance import Acceptance
from sapwood.announce import Announcement, announce
from sapwood.backbones import create_backbone, resolve_default
from sapwood.backbones.lending import Lend, LentOnce
from sapwood.data.given import as_pictures
from sapwood.errors import ConfigError
from sapwood.history import commit_round
from sapwood.kinds import KINDS, Kind, find_kind
from sapwood.kinds.base import Size
from sapwood.measuring import measure
from sapwood.methods import find_method
from sapwood.network import Network
from sapwood.objectives.base import Objective
from sapwood.preparation import prepare_round
from sapwood.progress import Progress
from sapwood.record import task_names
from sapwood.rounds import begin_round, learn_round, standing
from sapwood.settings import TrainingConfig
from sapwood.state import State, Version, take_back
from sapwood.training import stop_on_signals


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
        self,
        state: State,
        device: str | torch.device | None = None,
        *,
        memory: dict[str, Tensor] | None = None,
        lend: Lend | None = None,
    ) -> None:
        self.state = state
        self.memory = memory
        self.device = assembly.resolve_device(device)
        self._parts: tuple[Network, Objective] | None = None
        self._of = ""  # the version whose parts these are
        self._lend = lend

    @classmethod
    @torch.inference_mode(False)
    def create(
        cls,
        path: str | PathLike[str],
        *,
        backbone: str | None = None,
        method: str | None = None,
        head: str | None = None,
        kind: str | None = None,
        image_size: Size | None = None,
        seed: int = 0,
        settings: assembly.Overrides | None = None,
        device: str | torch.device | None = None,
    ) -> Learner:
        """Make a state folder that has learned nothing yet; the backbone stays in memory for its first use.

        Args:
            path: of the folder.
            backbone: by name.
            method: a recipe or composition; by default the one that suits the kind of task and the backbone.
            head: instead of the method's.
            kind: ``classification`` or ``segmentation``; by default what the method is made for.
            image_size: pixels of a view: a side, or (height, width) for masks.
            seed: of everything that is drawn.
            settings: per part.
            device: where to compute.

        Raises:
            UsageError: an unknown name or setting, or a folder that holds other things.
        """
        named, device, given = find_kind(kind or "classification"), assembly.resolve_device(device), settings or {}
        assembly.merge_settings(find_method(method or named.default_method, head, kind), given)  # before any download
        made = create_backbone(backbone or resolve_default(), image_size)
        recipe = find_method(method or named.default_for(made), head, kind)
        record = assembly.new_record(made, recipe, KINDS[recipe.kind].view_size(image_size, made.info), seed, given)
        here: list[State] = []
        world.first(lambda: here.append(State.create(path, record)))
        return cls(here[0] if here else State.open(path), device, lend=LentOnce(made))

    @classmethod
    def open(cls, path: str | PathLike[str], *, device: str | torch.device | None = None) -> Learner:
        """Open the current version of a state folder."""
        return cls(State.open(path), device)

    def reopened(self) -> Learner:
        """The version that the folder is at by now; this learner stays what it is, and lends its frozen weights."""
        return Learner(State.open(self.state.path), self.device, lend=self.network.lent)

    @property
    def record(self) -> Mapping[str, Any]:
        """What the current version records."""
        return self.state.version.record

    @property
    def classes_(self) -> tuple[str, ...]:
        """Names of the classes in learning order."""
        return task_names(self.record)

    @property
    def kind(self) -> Kind:
        """What kind of task the state learns."""
        return KINDS[self.record["kind"]]

    @property
    def accuracy_(self) -> list[list[float | None]]:
        """accuracy[i][j]: accuracy (of masks: mean IoU) on round j's classes after round i; None if not measured."""
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
        unlabelled: str = "background",
        skip_bad: bool = False,
        restart: bool = False,
        relearn: bool = False,
        max_drop: float | None = None,
        keep_probe: int | None = None,
        progress: Progress | None = None,
    ) -> Learner:
        """Learn one round: new classes, more pictures of known ones, or both; then commit it as a new version.

        A round that was killed goes on from its last checkpoint when it is asked for again with the same data and
        options, and ends with the same tensors. Of several processes each takes a piece of every batch; one writes.

        Args:
            data: class folder, CSV, saved data set, ``Pictures`` or pairs (picture, class name); or pictures and masks.
            task: name of the round.
            test: labelled pictures of any known classes, measured after training; they choose nothing.
            training: fields of ``TrainingConfig`` for this and later rounds.
            unlabelled: of masks: what belongs to none of their classes is ``background``, or to be ``ignore``-d.
            skip_bad: leave unreadable pictures out instead of stopping.
            restart: throw a half-learned round away.
            relearn: learn pictures again that were learned as the same class; they are left out otherwise.
            max_drop: percentage points that an old class among ``test`` may lose; if one loses more, nothing is kept.
            keep_probe: pictures of each class that the state keeps, unlearned, to measure on after this and later
                rounds where ``test`` is not given; None keeps as many as the last round.
            progress: listens to what happens, and is first told what ``announce`` finds.

        Raises:
            UsageError: something the user can mend; the state is unchanged.
            RoundRefused: an old class lost more than ``max_drop``; the state is unchanged.
            Interrupted: stopped after a checkpoint.
        """
        world.begin()
        progress = progress or Progress()
        reading: dict[str, Any] = {"unlabelled": unlabelled, "skip_bad": skip_bad, "keep_probe": keep_probe}
        reading |= {"restart": restart, "relearn": relearn, "progress": progress}
        prepared = prepare_round(self.state, data, task, test, training, max_drop, **reading)
        round_, config, checkpoints = prepared.round, prepared.config, self.state.training
        with ExitStack() as held, stop_on_signals() as stop, torch.inference_mode(False):
            world.first(lambda: held.enter_context(self.state.writer()) and None)
            network, objective = self._load(config)
            where = world.first(lambda: standing(self.state, prepared.plan, restart))
            if where == "committed":
                world.first(checkpoints.clear)
                progress.note(f"this round was already committed as {self.state.version.id}")
                return self
            network.unmerge()
            for line in announce(self.state, network, prepared, where, progress, stop.check).lines():
                progress.note(line)
            acceptance = None
            if max_drop is not None:
                acceptance = Acceptance(prepared, self.state.version, max_drop, network, progress, stop.check)

            # Nothing is written before: what fails up to here leaves no half-learned round behind.
            attention = world.first(lambda: begin_round(checkpoints, prepared.plan, where, network, config.batch_size))
            self._parts = None  # what follows changes them; only a commit makes them the current version's
            learned = learn_round(network, objective, round_, config, checkpoints, progress, stop, attention=attention)
            confusion = prepared.measure(network, progress, stop.check)
            if acceptance is not None and (refusal := acceptance.refusal(confusion)):
                world.first(checkpoints.clear)
                raise refusal
            world.first(lambda: commit_round(self.state, network, objective, prepared, learned, confusion))
            world.first(checkpoints.clear)
            self.state.refresh()
        self._parts, self._of = (network, objective), self.state.version.id
        return self

    def announce(
        self, data: Any, *, restart: bool = False, progress: Progress | None = None, **options: Any
    ) -> Announcement:
        """What ``learn`` with the same arguments says before it trains; nothing is written."""
        progress = progress or Progress()
        prepared = prepare_round(self.state, data, restart=restart, progress=progress, **options)
        network, _ = self._load(prepared.config)
        network.unmerge()
        return announce(self.state, network, prepared, standing(self.state, prepared.plan, restart), progress)

    def predict(self, pictures: Any, **options: Any) -> list[Any]:
        """A ``Prediction`` (or ``MaskPrediction``) of each picture, in the order given; see ``iter_predict``."""
        return list(self.iter_predict(pictures, **options))

    def iter_predict(
        self,
        pictures: Any,
        *,
        top: int = 5,
        tile: bool = False,
        skip_bad: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Any]:
        """Name the class of each picture, or draw its mask, one after the other; no answer depends on another picture.

        The answers are made as they are asked for, by the network of now: finish before the next ``learn``.

        Args:
            pictures: paths of files and folders, or pictures: Pillow images, uint8 arrays [H, W, 3], tensors.
            top: how many classes to list.
            tile: of masks: cut large pictures into views instead of shrinking them to one.
            skip_bad: leave unreadable pictures out.
            progress: listens to what happens.
        """
        self._some_classes()
        options: dict[str, Any] = {"skip_bad": skip_bad, "progress": progress or Progress(), "top": top, "tile": tile}
        return self.kind.predict(self.network, as_pictures(pictures), self.record, **options)

    def evaluate(
        self,
        data: Any,
        *,
        record: bool = False,
        unknown: Any = None,
        options: Any = None,
        skip_bad: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Measure on labelled pictures of known classes: an ``Evaluation`` or ``MaskEvaluation``; see ``measure``.

        Args:
            data: labelled pictures, or pictures with masks.
            record: fill the last row of the matrix with the result.
            unknown: pictures of other classes: how many of them are taken for known ones?
            options: ``MaskOptions``, for masks.
            skip_bad: leave unreadable pictures out.
            progress: listens to what happens.
        """
        return measure(
            self, data, record=record, unknown=unknown, options=options, skip_bad=skip_bad, progress=progress
        )

    def undo(self, *, progress: Progress | None = None) -> Version:
        """Drop the round that is half learned and nothing else; else go back by one change, which is a new version."""
        return take_back(self.state, progress)

    def merge(self) -> Learner:
        """Put the adapter into the weights in memory: the same predictions, to rounding, at the backbone's own cost."""
        self.network.merge()
        return self

    def _load(self, config: TrainingConfig | None = None) -> tuple[Network, Objective]:
        """Network and objective, computing as the last round did or as ``config`` says."""
        precision = assembly.resolve_precision((config or assembly.training_config(self.record)).precision, self.device)
        if self._parts is not None and self._of != self.state.version.id:  # undone, or changed through ``state``
            self._lend, self._parts = self._parts[0].lent, None
        if self._parts is None or self._parts[0].precision != precision:
            on = (self.device, precision, self._lend)
            self._parts, self._lend = self.state.reading(lambda: assembly.assemble(self.record, self.state, *on)), None
            self._parts[0].memory, self._of = self.memory, self.state.version.id
        return self._parts

    def _some_classes(self) -> tuple[str, ...]:
        if not self.classes_:
            raise ConfigError(f"{self.state.path} has learned nothing yet; run: sapwood learn {self.state.path} FOLDER")
        self._load()  # first: if this version has been pruned, the classes are those of the new one
        return self.classes_
