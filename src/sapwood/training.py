"""The one training loop: steps, schedules, checkpoints, and stopping at any moment."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sapwood.errors import Interrupted, SapwoodError
from sapwood.feeds import Feed, Piece, grouped_pieces
from sapwood.network import Network, Teacher
from sapwood.objectives.base import Objective
from sapwood.operations import counted
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig
from sapwood.task import Task
from sapwood.world import check_batch, first, rank
from sapwood.world.sums import add_gradients, alike, either, piece

_SGD_MOMENTUM = 0.9
_POLY_POWER = 0.9


class Checkpoints(Protocol):
    """Where a round's checkpoints go; the newest one is kept."""

    def save(self, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        """Keep this checkpoint, atomically."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint, or None."""


class Stop:
    """Set by SIGTERM or Ctrl-C; the loop looks at it after every step."""

    requested = False

    def check(self) -> None:
        """Raise if a stop was asked for; for work that is simply done again later."""
        if self.requested:
            raise Interrupted(
                "stopped; the state is unchanged, the same command goes on from the last checkpoint, if there is one"
            )


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the first SIGTERM or Ctrl-C into a request; a second one interrupts at once."""
    stop = Stop()
    kept: dict[signal.Signals, Any] = {}

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            kept[number] = signal.signal(number, request)
    except ValueError:
        pass  # not the main thread: whoever runs the thread decides how it stops
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@dataclass
class Position:
    """How far a round has come; stored with each checkpoint."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    step_gmacs: float = 0.0


@dataclass(frozen=True)
class Trained:
    """What training a round leaves behind besides parameters.

    Attributes:
        log: one entry an epoch: ``epoch``, ``loss``, between epochs ``validation_accuracy``.
        earlier: seconds that interrupted runs of the round took.
        gmacs: multiply-accumulates of all steps in units of 1e9: for each picture as many as in the first step.
    """

    log: list[dict[str, float]]
    earlier: float
    gmacs: float


def schedule_factor(kind: str, step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at ``step`` of ``total``, in [0, 1].

    >>> [round(schedule_factor("cosine", s, 4, 0.0), 3) for s in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    >>> schedule_factor("constant", 0, 10, 0.2)
    0.5
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if kind == "constant":
        return 1.0
    done = (step - rising) / max(1, total - rising)
    return 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else (1 - done) ** _POLY_POWER


def build_optimizer(parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Two groups: what adapts the backbone (``lr``, weight decay) and the head (``head_lr``, none)."""
    body = [parameter for name, parameter in parameters.items() if not name.startswith("head.")]
    head = [parameter for name, parameter in parameters.items() if name.startswith("head.")]
    head_lr = config.head_lr or config.lr
    groups: list[dict[str, Any]] = [
        {"params": body, "lr": config.lr, "peak": config.lr, "weight_decay": config.weight_decay},
        {"params": head, "lr": head_lr, "peak": head_lr, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=_SGD_MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, fused=True)


def train(
    network: Network,
    objective: Objective,
    feed: Feed,
    task: Task,
    config: TrainingConfig,
    *,
    teacher: Teacher | None,
    checkpoints: Checkpoints,
    progress: Progress,
    stop: Stop,
    adapt: bool,
    validate: Callable[[], float | None] | None = None,
) -> Trained:
    """Train one round from its last checkpoint, or from the start.

    Every draw is a function of (seed, round, epoch, picture), so that nothing but the parameters, the optimiser and
    the position has to be restored for a killed run to end with the same tensors.

    ``validate`` measures validation pictures between epochs, to be looked at; nothing is chosen by it.

    Raises:
        Interrupted: a stop was asked for; a checkpoint was written first.
        SapwoodError: the loss is not finite.
    """
    from accelerate import Accelerator

    # Its wrapper of an optimiser refers to itself and would keep the moments until garbage is collected.
    accelerator = Accelerator(mixed_precision="no", device_placement=False)
    check_batch(config.batch_size)
    parameters = network.trainable(adapt=adapt)
    optimizer = build_optimizer(parameters, config)
    steps_an_epoch = math.ceil(len(feed) / config.accumulate)
    total = steps_an_epoch * config.epochs
    position, log = Position(), []
    if found := checkpoints.load():
        log = _restore(found, parameters, network, optimizer, position)

    began = last_saved = time.monotonic()
    spent_before = position.seconds
    shown: dict[str, float] = {}
    progress.start("training", total, position.step)
    while position.step < total:
        epoch, inside = divmod(position.step, steps_an_epoch)
        for pieces in grouped_pieces(feed, epoch, inside * config.accumulate, config.accumulate):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule_factor(config.schedule, position.step, total, config.warmup)
            with nullcontext() if position.step_gmacs else counted() as operations:
                loss = _step(network, objective, feed, task, teacher, parameters, pieces, accelerator)
            gmacs = position.step_gmacs if operations is None else operations.gmacs
            loss, summed = add_gradients(parameters.values(), loss, gmacs)
            if operations is not None:
                position.step_gmacs = summed
            if not math.isfinite(loss):
                raise SapwoodError(
                    f"the loss became {loss} at step {position.step} of round {task.name!r}; nothing was kept. "
                    f"Begin anew with a lower learning rate (--restart --lr {config.lr / 10:g})"
                )
            with objective.stepping(network.head, task):
                optimizer.step()
            optimizer.zero_grad()
            network.adapter.after_step()
            position.step += 1
            position.loss_sum += loss
            position.loss_count += 1
            progress.advance(1, loss=position.loss_sum / position.loss_count, **shown)
            if position.step % steps_an_epoch == 0:
                log.append({"epoch": epoch, "loss": position.loss_sum / position.loss_count})
                position.loss_sum, position.loss_count = 0.0, 0
                if validate is not None and position.step < total and (share := validate()) is not None:
                    log[-1]["validation_accuracy"] = shown["validation"] = share
            now = time.monotonic()
            stopped, due = either(stop.requested, rank() == 0 and now - last_saved >= config.checkpoint_seconds)
            if stopped or due or position.step == total:
                position.seconds = spent_before + now - began
                first(lambda: checkpoints.save(*_snapshot(parameters, network, optimizer, position, total, log)))
                last_saved = time.monotonic()
                stop.requested |= stopped
                stop.check()
    progress.finish()
    alike(parameters.values())
    # The last step of an epoch may have fewer pictures.
    steps = feed.count / min(feed.count, feed.batch_size * config.accumulate)
    return Trained(log, spent_before, position.step_gmacs * steps * config.epochs)


def _step(
    network: Network,
    objective: Objective,
    feed: Feed,
    task: Task,
    teacher: Teacher | None,
    parameters: dict[str, nn.Parameter],
    pieces: list[Piece],
    accelerator: Any,
) -> float:
    pictures = sum(each.whole for each in pieces)
    value = 0.0
    for position, (batch, own, whole) in enumerate(pieces):
        with piece(own / whole):
            outputs, told = feed.forward(network, teacher, batch)
            loss = objective.loss(outputs, batch.targets.to(outputs.logits.device), told, task)
            loss = loss * (own / pictures)
        if position == 0 and rank() == 0:
            # A term on the parameters counts once a step, however many batches and processes the step adds up.
            for term in (objective.penalty(parameters), network.adapter.penalty()):
                if term is not None:
                    loss = loss + term
        accelerator.backward(loss)
        value += float(loss.detach())
    return value


def _snapshot(
    parameters: dict[str, nn.Parameter],
    network: Network,
    optimizer: Any,
    position: Position,
    total: int,
    log: list[dict[str, float]],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"buffer.{name}": buffer for name, buffer in network.adapter.named_buffers()}
    tensors |= {f"running.{name}": running for name, running in network.head.running().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in slots.items() if value is not None
        }
    return tensors, {"position": position.__dict__, "steps": total, "log": log}


def _restore(
    found: tuple[dict[str, Tensor], dict[str, Any]],
    parameters: dict[str, nn.Parameter],
    network: Network,
    optimizer: torch.optim.Optimizer,
    position: Position,
) -> list[dict[str, float]]:
    tensors, meta = found
    buffers, running = dict(network.adapter.named_buffers()), network.head.running()
    slots: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "parameter":
                parameters[rest].copy_(tensor)
            elif kind == "buffer":
                buffers[rest].copy_(tensor)
            elif kind == "running":
                running[rest].copy_(tensor)
            else:
                index, _, key = rest.partition(".")
                slots.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    position.__dict__.update(meta["position"])
    return list(meta["log"])
