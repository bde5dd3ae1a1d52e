"""Equal compute instead of equal epochs: how many epochs of a row a budget of multiply-accumulates pays for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from sapwood.assembly import merge_settings
from sapwood.bench.plan import Plan, Row
from sapwood.bench.rows import Run
from sapwood.bench.runner import open_learner
from sapwood.data.pictures import Pictures
from sapwood.data.splits import validation_split
from sapwood.data.streams import Stream
from sapwood.errors import ConfigError
from sapwood.methods import find_method
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig, build

_ROUNDING = 1e-9  # of sums of floats: a budget of exactly n epochs pays for n


def chosen_epochs(plan: Plan, rows: Mapping[str, Row], progress: Progress) -> dict[str, int]:
    """Epochs of each row that trains: the most whose counted training stays within the plan's budget.

    Each row's cost is found by a probe (``epoch_gmacs``).

    Args:
        plan: with a budget.
        rows: those that are still to be run, by name.
        progress: listens.

    Returns:
        By name; rows that train nothing are left out.

    Raises:
        ConfigError: the budget does not pay for an epoch of each row; the line names the smallest that does.
    """
    budget = plan.budget_gmacs
    assert budget is not None
    streams: dict[int, Stream] = {}
    costs: dict[str, float] = {}
    progress.start("probing what an epoch costs", len(rows))
    for name, row in rows.items():
        stream = streams.setdefault(row.run.seed, plan.stream(row.run.seed))
        with TemporaryDirectory(prefix="sapwood-") as folder:
            costs[name] = epoch_gmacs(stream, row.run, Path(folder))
        progress.advance(1)
    progress.finish()
    dearest = max(costs, key=lambda name: costs[name], default=None)
    if dearest is not None and epochs_within(budget, costs[dearest]) < 1:
        raise ConfigError(
            f"--budget-gmacs {budget:g} does not pay for one epoch of row {dearest}; give at least "
            f"{_rounded_up(costs[dearest])}, the smallest that works for all rows"
        )
    return {name: epochs_within(budget, cost) for name, cost in costs.items() if cost}


def epochs_within(budget: float, cost: float) -> int:
    """Whole epochs of ``cost`` that a budget pays for.

    >>> epochs_within(0.3, 0.1), epochs_within(0.29, 0.1)
    (3, 2)
    """
    return math.floor(budget / cost * (1 + _ROUNDING)) if cost else 1


def with_epochs(wanted: Run, epochs: int) -> Run:
    """The run with another number of epochs."""
    return _changed(wanted, epochs=epochs)


def epoch_gmacs(stream: Stream, wanted: Run, folder: Path) -> float:
    """GMACs that one epoch of all trainings of a row takes, as ``train_gmacs`` counts them.

    A probe learns every round with one step's pictures (and one of each class), teacher and growth included, and counts
    that step; an epoch has as many steps as the round's pictures make. Where a step's cost depends on what the
    pictures look like (the bases of ``dual``, masks without some class), it is that of the probe's pictures.

    Args:
        stream: of the row's seed.
        wanted: the row's run.
        folder: an empty one, for the probe's states.

    Returns:
        0 where nothing is trained.
    """
    method = find_method(wanted.method, wanted.head, stream.kind)
    config = build(TrainingConfig, merge_settings(method, wanted.settings)["training"], "training")
    probe = _changed(wanted, epochs=1, validation=0)
    learner = None
    total = 0.0
    for index, (name, pictures) in enumerate(_trainings(stream, wanted, joint=method.all_data)):
        if learner is None or method.all_data:
            learner = open_learner(folder / str(index), stream.kind, probe, None)
        labels = [picture.label or name for picture in pictures]
        count = len(validation_split(labels, config.validation, wanted.seed)[0])
        few = _some(pictures, labels, min(count, config.batch_size * config.accumulate))
        learner.learn(few, task=name)
        step = learner.record["tasks"][-1]["train_gmacs"] / _steps(len(few), config)
        if not step and index == 0:
            return 0.0  # nor will anything later
        total += step * _steps(count, config)
    return total


def _trainings(stream: Stream, wanted: Run, *, joint: bool) -> Iterator[tuple[str, Pictures]]:
    """Name and pictures of each time that the row trains."""
    last = len(stream.rounds) - 1
    for index, part in enumerate(stream.rounds):
        if not joint:
            yield part.name, part.train
        elif index == last:  # as many epochs of fewer pictures are cheaper
            yield "joint", stream.joint(index)


def _some(pictures: Pictures, labels: list[str], count: int) -> Pictures:
    """So many pictures, spread over all, and at least one of each label."""
    first = dict(zip(reversed(labels), reversed(range(len(labels))), strict=True)).values()
    chosen = dict.fromkeys([*first, *range(0, len(labels), max(1, len(labels) // count)), *range(len(labels))])
    return pictures.subset(sorted(list(chosen)[: max(count, len(first))]))


def _steps(pictures: int, config: TrainingConfig) -> int:
    return math.ceil(math.ceil(pictures / config.batch_size) / config.accumulate)


def _changed(wanted: Run, **training: int) -> Run:
    settings = {**wanted.settings, "training": {**wanted.settings.get("training", {}), **training}}
    return replace(wanted, settings=settings)


def _rounded_up(value: float) -> str:
    """Four digits, never less than the value.

    >>> _rounded_up(1234.5678), _rounded_up(0.00012341)
    ('1235', '0.0001235')
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / unit) * unit:.4g}"
