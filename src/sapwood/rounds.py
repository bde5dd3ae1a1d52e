"""One round of learning: what it learns from, and the order in which the parts learn."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sapwood.data.loader import Views
from sapwood.data.names import check_class_names
from sapwood.data.splits import validation_split
from sapwood.data.store import PictureStore
from sapwood.errors import ConfigError, DataError
from sapwood.feeds import FeatureFeed, Feed, PictureFeed, extract, passes
from sapwood.functional.statistics import drift_map
from sapwood.heads.base import Features
from sapwood.network import Network, Teacher
from sapwood.objectives.base import Objective
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig
from sapwood.state import State
from sapwood.task import Task
from sapwood.training import Checkpoints, Stop, train

# These change how a round is computed, never what comes out.
_HARMLESS = ("training.workers", "training.checkpoint_seconds")


@dataclass(frozen=True)
class Round:
    """The pictures of a round, decoded, and split.

    Attributes:
        task: index, name, classes and seed.
        names: all class names after the round, in learning order.
        train, held: stores of training and validation pictures.
        train_targets, held_targets: their class indices.
    """

    task: Task
    names: tuple[str, ...]
    train: PictureStore
    held: PictureStore
    train_targets: Tensor
    held_targets: Tensor

    def digest(self) -> str:
        """sha256 over (picture, label, split) in order: two rounds with the same digest see the same batches."""
        return hashlib.sha256(repr(self.manifest()).encode()).hexdigest()

    def manifest(self) -> list[dict[str, Any]]:
        """What is remembered of each picture: hash, class index and split; neither pixels nor paths."""
        return [
            {"sha256": sha256, "label": int(label), "split": split}
            for split, store, targets in (
                ("train", self.train, self.train_targets),
                ("validation", self.held, self.held_targets),
            )
            for sha256, label in zip(store.sha256, targets, strict=True)
        ]


def prepare(store: PictureStore, known: Sequence[str], index: int, name: str, seed: int, validation: float) -> Round:
    """Split the pictures, and number the classes: known ones keep their index, new ones follow in the data's order."""
    labels = [label for label in store.pictures.labels if label is not None]
    if len(labels) < len(store):
        raise DataError("some pictures have no class; learning needs one for each")
    check_class_names(store.pictures.classes, "the new pictures", known)
    new = [label for label in store.pictures.classes if label not in known]
    names = (*known, *new)
    position = {label: number for number, label in enumerate(names)}
    targets = torch.tensor([position[label] for label in labels])
    train, held = validation_split(labels, validation, seed)
    task = Task(
        index,
        name,
        tuple(range(len(known), len(names))),
        tuple(sorted({position[label] for label in labels})),
        len(names),
        seed,
    )
    return Round(task, names, store.subset(train), store.subset(held), targets[train], targets[held])


def learn_round(
    network: Network,
    objective: Objective,
    data: Round,
    config: TrainingConfig,
    *,
    image_size: int,
    checkpoints: Checkpoints,
    progress: Progress,
    stop: Stop,
) -> dict[str, Any]:
    """Teach the network a round, in place.

    Order: the head grows; adapter and head learn by gradient; the adapter folds what it learned; statistics of earlier
    rounds are carried along if the features moved; the head is fitted on the new features.

    Returns:
        ``log`` (one entry an epoch), ``seconds``, ``trainable_parameters``, ``validation_accuracy`` (None without
        validation pictures), ``head`` (facts of the fit).
    """
    began = time.monotonic()
    task, adapter, head = data.task, network.adapter, network.head
    later = task.index > 0
    moves = adapter.moves and not (config.adapt == "first" and later)
    options: dict[str, Any] = {
        "image_size": image_size,
        "batch_size": max(config.batch_size, 32),
        "workers": config.workers,
        "progress": progress,
        "check": stop.check,
    }

    teacher = Teacher(network) if "teacher" in objective.needs and later else None
    head.grow(len(task.new), task.generator("head"))
    head.to(network.device)
    features = held_features = before = None
    if not moves:
        features = extract(network, data.train, what="features", **options)
        held_features = extract(network, data.held, what="validation features", **options)
    else:
        if head.drift == "linear" and later:
            before = extract(network, data.train, what="features before", **options)
        adapter.before_task(task)
        network.refold()

    log: list[dict[str, float]] = []
    earlier = 0.0
    parameters = network.trainable(adapt=moves) if moves or head.fitted == "gradient" else {}
    if parameters:
        feed, validate = _feeds(network, data, config, image_size, features, held_features)
        log, earlier = train(
            network,
            objective,
            feed,
            task,
            config,
            teacher=teacher,
            checkpoints=checkpoints,
            progress=progress,
            stop=stop,
            adapt=moves,
            validate=validate,
        )
        anchored = network.persistent(adapt=moves)
        objective.after_task(anchored, partial(feed.batches, 0, 0), partial(feed.logits, network), task)
    if moves:
        adapter.after_task(task)
        network.refold()

    facts: dict[str, Any] = {}
    accuracy: float | None = None
    if head.wants_features:
        if features is None:
            features = extract(network, data.train, what="features", **options)
            held_features = extract(network, data.held, what="validation features", **options)
        if before is not None:
            head.carry(drift_map(before, features, head.config.drift_strength))
        held = Features(held_features, data.held_targets) if held_features is not None and len(data.held) else None
        facts = head.fit(Features(features, data.train_targets), held, task.generator("fit"))
        accuracy = facts.get("validation_accuracy")
    if len(data.held) and not head.calibrates:
        if held_features is not None and network.adapter.mergeable:
            with torch.no_grad():
                logits = head.logits(held_features.to(network.device)).cpu()
        else:
            logits = passes(network, data.held, [network.predict], what="validation", **options)[0]
        head.calibrate_temperature(logits, data.held_targets)
        accuracy = head.right_share(logits, data.held_targets)
    return {
        "log": log,
        "seconds": earlier + time.monotonic() - began,
        "trainable_parameters": sum(parameter.numel() for parameter in parameters.values()),
        "validation_accuracy": accuracy,
        "head": facts,
    }


def _feeds(
    network: Network,
    data: Round,
    config: TrainingConfig,
    image_size: int,
    features: Tensor | None,
    held_features: Tensor | None,
) -> tuple[Feed, Callable[[], float] | None]:
    """What the round trains on, and a measure of the training logits on its validation pictures."""
    seed, index, size = data.task.seed, data.task.index, config.batch_size
    feed: Feed
    held: Any
    if features is not None and held_features is not None:
        feed = FeatureFeed(features, data.train_targets, size, seed, index)
        held = FeatureFeed(held_features, data.held_targets, size, seed, index)
    else:
        views = Views(image_size, augment=config.augment, seed=seed, task=index)
        feed = PictureFeed(data.train, data.train_targets, views, size, config.workers)
        held = PictureFeed(data.held, data.held_targets, replace(views, augment=False), size, config.workers)
    own = torch.tensor(data.task.annotated)

    @torch.no_grad()
    def validate() -> float:
        right = 0
        for batch in held.batches(0, 0):
            right += int((own[held.logits(network, batch)[:, own].argmax(1).cpu()] == batch.targets).sum())
        return right / len(data.held)

    return feed, validate if len(data.held) else None


def plan_of(record: Mapping[str, Any], data: Round, training: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a killed round to go on; compared key by key."""
    settings = {**record["settings"], "training": training}
    return {
        "base": _base(record["tasks"]),
        "task": data.task.name,
        "classes": list(data.names),
        "pictures": data.digest(),
        "seed": data.task.seed,
        "settings": {
            f"{part}.{key}": value
            for part, values in settings.items()
            for key, value in values.items()
            if f"{part}.{key}" not in _HARMLESS
        },
    }


def _base(tasks: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What a round is learned on top of: measuring in between makes a new version, but no new base."""
    return [len(tasks), tasks[-1]["folder"] if tasks else None]


def begin(state: State, plan: Mapping[str, Any], restart: bool) -> bool:
    """Make the training folder ready for a round; True if this very round was committed already.

    A kill may fall between the commit and the clearing of the folder; the repeated command then has nothing to do.

    Raises:
        ConfigError: another round, or this one with other options, is half learned; or the name is taken.
    """
    folder = state.training
    wanted = json.loads(json.dumps(plan))
    begun = None if restart else folder.plan()
    if begun is not None and begun.get("base") != wanted["base"]:
        folder.clear()
        same = all(begun.get(key) == wanted[key] for key in ("pictures", "settings", "seed"))
        if same and begun.get("base") == _base(state.version.record["tasks"][:-1]):
            return True
        begun = None
    if begun is None:
        if plan["task"] in [task["name"] for task in state.version.record["tasks"]]:
            raise ConfigError(
                f"{state.path} has learned a round {plan['task']!r} already; give another name with --task"
            )
        folder.begin(plan)
        return False
    if differing := _differences(begun, wanted):
        raise ConfigError(
            f"{state.path}: round {begun.get('task')!r} is half learned with other options "
            f"({'; '.join(differing)}); repeat them to go on, or give --restart to begin anew"
        )
    return False


def _differences(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What has changed between two plans, one phrase each; long values are not shown."""
    phrases = [
        f"{key} was {begun.get(key)!r}, now {value!r}" if key in ("task", "seed") else f"other {key}"
        for key, value in wanted.items()
        if key != "settings" and value != begun.get(key)
    ]
    old, new = begun.get("settings", {}), wanted["settings"]
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return phrases + [f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in keys]
