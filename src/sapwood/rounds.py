"""One round of learning: the order in which the parts learn, and whether a killed one may go on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sapwood.backbones.attention import attending, fastest_attention
from sapwood.backbones.base import Attention
from sapwood.collector import Collector
from sapwood.data.loader import Views
from sapwood.errors import ConfigError
from sapwood.feeds import Feed
from sapwood.fitting import PooledFit
from sapwood.heads.base import PooledHead
from sapwood.kinds.base import Round
from sapwood.kinds.classification import PictureRound
from sapwood.network import Network, Teacher
from sapwood.objectives.base import Objective, Outputs
from sapwood.operations import Tally
from sapwood.passing import Rows
from sapwood.prefixes import PrefixFeed, first_adapted, kept_views
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig
from sapwood.state import State, TrainingFolder
from sapwood.state.training import base_of
from sapwood.training import Checkpoints, Stop, Trained, train
from sapwood.world.pieces import check_frozen, in_pieces, whole
from sapwood.world.sums import summed


class Keeper(Checkpoints, Rows, Protocol):
    """Where what a round has done so far is kept."""


# These change how a round is computed, never what comes out.
_HARMLESS = ("training.workers", "training.checkpoint_seconds")


def learn_round(
    network: Network,
    objective: Objective,
    data: Round,
    config: TrainingConfig,
    checkpoints: Keeper,
    progress: Progress,
    stop: Stop,
    *,
    attention: Attention = "sdpa",
) -> dict[str, Any]:
    """Teach the network a round, in place; ``attention`` is how it is computed in steps.

    Order: the head grows; adapter and head learn by gradient; the adapter folds, and the head merges, what was learned.
    A head that is fitted on pooled features then carries its statistics along if the features moved, and is fitted on
    the new ones.

    Returns:
        ``log`` (one entry an epoch), ``seconds``, ``trainable_parameters``, ``train_gmacs`` (steps and passes),
        ``pass_gmacs`` (of these, passes over the pictures before and after the steps: statistics, features,
        pseudo-labels, Fisher), ``adapted`` (the adapter learned), ``validation_accuracy`` (None without validation
        pictures), ``head`` (facts of the fit), ``features`` [n, d] of the pictures as they are afterwards, training
        before validation; None if not computed.
    """
    began = time.monotonic()
    task, adapter, head = data.task, network.adapter, network.head
    later = task.index > 0
    moves = adapter.moves and not (config.adapt == "first" and later) and not objective.stays(task)
    tally = Tally()
    collector = Collector(network, data.plain_feed(config, held=False), len(data.train), progress, stop.check, tally)
    pooled = None
    if isinstance(head, PooledHead) and isinstance(data, PictureRound):
        pooled = PooledFit(network, head, data, config, checkpoints, progress, stop.check, tally)

    # Before the head grows: the objective may change old rows too, and the teacher is the network as it was.
    teacher = Teacher(network) if "teacher" in objective.needs and later else None
    head.grow(task.known - head.classes, task.generator("head"))
    head.to(network.device)
    head.requires_grad_(True)  # what an earlier round froze, it froze for itself
    head.before_task(task)
    objective.initialise(head, task)
    if moves:
        if pooled is not None and later:
            pooled.remember()
        adapter.before_task(task, collector)
        network.refold()
    elif pooled is not None:
        pooled.compute()

    trained = Trained([], 0.0, 0.0)
    parameters = network.trainable(adapt=moves) if moves or head.fitted == "gradient" else {}
    if parameters:
        if pooled is not None and not moves and not _watched(objective, teacher) - {"teacher"}:
            feed, held = pooled.feeds()
        else:
            feed, held = data.feed(config, stays=not moves), data.plain_feed(config, held=True, stays=not moves)
        if config.cache_prefix and moves:
            feed, held = _prefix_feeds(network, objective, data, config)
            for each in (feed, held):
                each.fill(progress, stop.check, tally)
        objective.before_task(partial(_pictures, data, config, stop, tally), partial(_told, teacher), task)
        watching = network.watching(_watched(objective, teacher))
        shared = in_pieces(network.backbone, network.backbone.maps)
        with watching, head.training_mode(True), attending(network.backbone, attention), shared:
            trained = train(
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
                validate=partial(_validate, network, data, held) if len(data.held) else None,
            )

        def logits(batch: Any) -> Tensor:
            return feed.forward(network, None, batch)[0].logits

        def pictures(size: int) -> Iterator[Any]:
            return tally.over(feed.batches(0, 0, size))

        objective.after_task(network.persistent(adapt=moves), pictures, logits, task)
    if moves:
        adapter.after_task(task, collector)
        network.refold()
    head.after_task(task)

    facts: dict[str, Any] = {}
    accuracy: float | None = None
    if pooled is not None:
        facts, accuracy = pooled.finish()
    elif len(data.held):
        accuracy = data.validate(network, data.plain_feed(config, held=True, stays=True))
    objective.settle(network.persistent())
    passes = float(summed(torch.tensor(tally.gmacs, dtype=torch.float64)))
    return {
        "log": trained.log,
        "seconds": trained.earlier + time.monotonic() - began,
        "trainable_parameters": sum(parameter.numel() for parameter in parameters.values()),
        "validation_accuracy": accuracy,
        "train_gmacs": trained.gmacs + passes,
        "pass_gmacs": passes,
        "adapted": moves,
        "features": None if pooled is None else pooled.of_all(),
        "head": facts,
    }


def _prefix_feeds(
    network: Network, objective: Objective, data: Round, config: TrainingConfig
) -> tuple[PrefixFeed, PrefixFeed]:
    """The feeds of a round whose blocks below the adapter are computed once a view."""
    blocks = first_adapted(network, objective.needs, "classification" if isinstance(data, PictureRound) else "masks")
    assert isinstance(data, PictureRound)
    views = Views(data.size, augment=config.augment, seed=data.task.seed, task=data.task.index)
    size, workers = config.batch_size, config.workers
    shown: dict[str, Any] = {"turns": kept_views(config), "balanced": config.balance == "auto"}
    return (
        PrefixFeed(network, blocks, data.train, data.train_targets, views, size, workers, **shown),
        PrefixFeed(network, blocks, data.held, data.held_targets, views, size, workers),
    )


def _watched(objective: Objective, teacher: Teacher | None) -> frozenset[str]:
    """What is only compared with the teacher's is not computed where there is none."""
    if teacher is None and "teacher" in objective.needs:
        return objective.needs & {"saliency"}
    return objective.needs


def _pictures(data: Round, config: TrainingConfig, stop: Stop, tally: Tally) -> Iterator[Any]:
    """The training pictures in plain views, once."""
    for batch in tally.over(data.plain_feed(config, held=False).batches(0, 0)):
        stop.check()
        yield batch


def _told(teacher: Teacher | None, batch: Any) -> Outputs | None:
    return teacher(batch.images) if teacher is not None else None


def _validate(network: Network, data: Round, feed: Feed) -> float | None:
    """Between epochs: the network as it predicts, and nothing that only the loss looks at."""
    with network.head.training_mode(False), network.watching(()), whole(network.backbone):
        return data.validate(network, feed)


def plan_of(record: Mapping[str, Any], data: Round, training: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a killed round to go on; compared key by key."""
    settings = {**record["settings"], "training": training}
    return {
        "base": base_of(record["tasks"]),
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


def begin_round(
    training: TrainingFolder, plan: Mapping[str, Any], where: str, network: Network, batch_size: int
) -> Attention:
    """Note the plan of a round that is ``new``; how attention is computed belongs to it, since bits depend on it.

    Returns:
        What is the fastest here, or of a half-learned round what it began with.

    Raises:
        ConfigError: the backbone is to be sharded, but trains; a half-learned round began in another precision.
    """
    check_frozen(network.backbone)
    if where != "new":
        begun = training.plan() or {}
        if (precision := begun.get("precision", network.precision)) != network.precision:
            raise ConfigError(
                f"round {begun.get('task')!r} began in {precision}, and would go on in {network.precision}: "
                "go on where it began, or begin anew with --restart"
            )
        return begun.get("attention", "sdpa")
    attention = fastest_attention(network.backbone, batch_size) if network.adapter.moves else "sdpa"
    training.begin({**plan, "attention": attention, "precision": network.precision})
    return attention


def just_committed(state: State, plan: Mapping[str, Any]) -> bool:
    """Whether the last round is the one that is asked for, and was killed before its training folder was cleared."""
    wanted, begun = json.loads(json.dumps(plan)), state.training.plan() or {}
    same = all(begun.get(key) == wanted[key] for key in ("pictures", "settings", "seed"))
    return same and may_be_committed(state)


def may_be_committed(state: State) -> bool:
    """Whether what the training folder holds was begun where the last round was, so that it may be that round."""
    begun, tasks = state.training.plan(), state.version.record["tasks"]
    return bool(tasks) and begun is not None and begun.get("base") == base_of(tasks[:-1])


def standing(state: State, plan: Mapping[str, Any], restart: bool) -> Literal["new", "half learned", "committed"]:
    """Where a round stands that is asked for; nothing is written.

    A kill may fall between the commit of a round and the clearing of its training folder: then it is ``committed``, and
    the repeated command has nothing to do.

    Raises:
        ConfigError: another round, or this one with other options, is half learned; or the name is taken.
    """
    wanted = json.loads(json.dumps(plan))
    begun = None if restart else state.training.plan()
    if begun is not None and begun.get("base") != wanted["base"]:
        if just_committed(state, plan):
            return "committed"
        begun = None
    if begun is None:
        if plan["task"] in [task["name"] for task in state.version.record["tasks"]]:
            raise ConfigError(
                f"{state.path} has learned a round {plan['task']!r} already; give another name with --task"
            )
        return "new"
    if differing := _differences(begun, wanted):
        raise ConfigError(
            f"{state.path}: round {begun.get('task')!r} is half learned with other options "
            f"({'; '.join(differing)}); repeat them to go on, or give --restart to begin anew"
        )
    return "half learned"


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
