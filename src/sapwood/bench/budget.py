"""Equal compute instead of equal epochs: how many epochs of a row a budget of multiply-accumulates pays for.

The passes over the pictures before and after the training steps are paid first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

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


def chosen_epochs(plan: Plan, rows: Mapping[str, Row], progress: Progress, *, fixed: bool = False) -> dict[str, int]:
    """Epochs of each row that trains: the most whose counted training stays within the plan's budget.

    Each row's cost is found by a ``probe``, which takes passes for somewhat dearer than they may be.

    Args:
        plan: with a budget.
        rows: those that are still to be run, by name.
        progress: listens.
        fixed: there are rows of this budget, beside which those of another would not stand.

    Returns:
        By name; rows that train nothing are left out.

    Raises:
        ConfigError: the budget does not pay for an epoch of each row; the line names the smallest that does.
    """
    budget = plan.budget_gmacs
    assert budget is not None
    streams: dict[int, Stream] = {}
    costs: dict[str, Compute] = {}
    progress.start("probing what an epoch costs", len(rows))
    for name, row in rows.items():
        stream = streams.setdefault(row.run.seed, plan.stream(row.run.seed))
        with TemporaryDirectory(prefix="sapwood-") as folder:
            costs[name] = probe(stream, row.run, Path(folder))
        progress.advance(1)
    progress.finish()
    trained = {name: cost for name, cost in costs.items() if cost.epoch}
    dearest = max(trained, key=lambda name: sum(trained[name]), default=None)
    if dearest is not None and epochs_within(budget, trained[dearest]) < 1:
        least = _rounded_up(sum(trained[dearest]))
        remedy = f"name another --out and give at least {least} there" if fixed else f"give at least {least}"
        raise ConfigError(
            f"--budget-gmacs {budget:g} does not pay for one epoch of row {dearest}; {remedy}, the smallest that works "
            "for all rows"
        )
    return {name: epochs_within(budget, cost) for name, cost in trained.items()}


class Compute(NamedTuple):
    """What a row takes, in GMACs.

    Attributes:
        passes: over the pictures before and after the training steps, whatever the number of epochs.
        epoch: of all trainings; 0 where nothing is trained.
    """

    passes: float
    epoch: float


def epochs_within(budget: float, cost: Compute) -> int:
    """Whole epochs that a budget pays for beside the passes.

    >>> epochs_within(0.5, Compute(0.2, 0.1)), epochs_within(0.49, Compute(0.2, 0.1))
    (3, 2)
    """
    return math.floor((budget * (1 + _ROUNDING) - cost.passes) / cost.epoch)


def with_epochs(wanted: Run, epochs: int) -> Run:
    """The run with another number of epochs."""
    return _changed(wanted, epochs=epochs)


def probe(stream: Stream, wanted: Run, folder: Path) -> Compute:
    """GMACs that a row takes, as ``train_gmacs`` counts them.

    A probe learns every round with one step's pictures (and one of each class), teacher and growth included, and counts
    that step and the passes, for each of its pictures; an epoch goes over the round's, and so does a pass, so that one
    that looks at fewer costs less than this. Where a step's cost depends on what the pictures
    look like (the bases of ``dual``, masks without some class), it is that of the probe's pictures.

    Args:
        stream: of the row's seed.
        wanted: the row's run.
        folder: an empty one, for the probe's states.

    Returns:
        Nothing of either where nothing is trained.
    """
    method = find_method(wanted.method, wanted.head, stream.kind)
    config = build(TrainingConfig, merge_settings(method, wanted.settings)["training"], "training")
    short = _changed(wanted, epochs=1, validation=0)
    learner = None
    passes = epoch = 0.0
    for index, (name, pictures, often) in enumerate(_trainings(stream, joint=method.all_data)):
        if learner is None or method.all_data:
            learner = open_learner(folder / str(index), stream.kind, short, None)
        labels = [picture.label or name for picture in pictures]
        count = len(validation_split(labels, config.validation, wanted.seed)[0])
        few = _some(pictures, labels, min(count, config.batch_size * config.accumulate))
        learner.learn(few, task=name, relearn=True)
        task = learner.record["tasks"][-1]
        steps = (task["train_gmacs"] - task["pass_gmacs"]) / len(few)
        if not steps and index == 0:
            return Compute(0.0, 0.0)  # nor will anything later
        passes += task["pass_gmacs"] * len(labels) / len(few)
        epoch += steps * count * often
    return Compute(passes, epoch)


def _trainings(stream: Stream, *, joint: bool) -> Iterator[tuple[str, Pictures, float]]:
    """Name, pictures, and how often an epoch shows each, for each time that the row trains."""
    last = len(stream.rounds) - 1
    for index, part in enumerate(stream.rounds):
        if not joint:
            yield part.name, part.train, 1
        elif index == last:  # those on fewer pictures are cheaper
            pictures = stream.joint(index)
            yield "joint", pictures, sum(len(each.train) for each in stream.rounds) / len(pictures)


def _some(pictures: Pictures, labels: list[str], count: int) -> Pictures:
    """So many pictures, spread over all, and at least one of each label."""
    first = dict(zip(reversed(labels), reversed(range(len(labels))), strict=True)).values()
    chosen = dict.fromkeys([*first, *range(0, len(labels), max(1, len(labels) // count)), *range(len(labels))])
    return pictures.subset(sorted(list(chosen)[: max(count, len(first))]))


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
