"""What is settled before a round begins: its pictures and those to measure on, read and checked, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from sapwood import world
from sapwood.assembly import training_config
from sapwood.data.mask_folder import MASK_LAYOUT
from sapwood.data.names import class_name
from sapwood.errors import ConfigError, DataError
from sapwood.kinds import KINDS, Kind, Round, kind_of
from sapwood.learned import Duplicate, Earlier, count_learned, find_duplicates, learned_pictures, repeated
from sapwood.network import Network
from sapwood.probes import Probe, kept_counts, read_probes, take_probes, wanted_probes
from sapwood.progress import Progress
from sapwood.record import former_names, task_names
from sapwood.rounds import just_committed, may_be_committed, plan_of
from sapwood.settings import TrainingConfig, build, plain
from sapwood.state import State
from sapwood.world.machine import first_of_machine


@dataclass(frozen=True)
class Prepared:
    """A round that may begin.

    Attributes:
        kind: of task.
        round: its pictures, decoded and split.
        tests: pictures to measure on afterwards, decoded; None without.
        source: where those come from: ``test``, or ``probe`` where the state keeps them.
        config: how it is trained.
        plan: what must be the same for a killed round to go on.
        remarks: what a person should know of the pictures.
        probes: pictures of the round that are not learned, but kept to measure on.
        keep_probe: how many of a class later rounds keep.
        earlier: what was learned before.
        duplicates: those of the given pictures that are among it.
    """

    kind: Kind
    round: Round
    tests: Any
    config: TrainingConfig
    plan: dict[str, Any]
    remarks: tuple[str, ...]
    source: str = "test"
    probes: tuple[Probe, ...] = ()
    keep_probe: int = 0
    earlier: Earlier = field(default_factory=dict)
    duplicates: tuple[Duplicate, ...] = ()

    def measure(self, network: Network, progress: Progress, check: Callable[[], None] = lambda: None) -> Tensor | None:
        """Counts [K, K] of truth (rows) against prediction on the pictures to measure on; None without them.

        K counts the round's classes too, whether the network has learned them or not.
        """
        if self.tests is None:
            return None
        return self.kind.confusion(network, self.tests, self.round.names, self.round.size, progress, check)


def prepare_round(
    state: State,
    data: Any,
    task: str | None = None,
    test: Any = None,
    training: Mapping[str, Any] | None = None,
    max_drop: float | None = None,
    *,
    unlabelled: str = "background",
    skip_bad: bool = False,
    keep_probe: int | None = None,
    restart: bool = False,
    relearn: bool = False,
    progress: Progress,
) -> Prepared:
    """Read and check what a round needs; nothing is written. The arguments are those of ``Learner.learn``.

    Raises:
        UsageError: a setting, a name or a picture is not as it should be.
    """
    record = state.version.record
    config = round_config(record, training or {})
    known, index = task_names(record), len(record["tasks"])
    name = f"task-{index + 1}" if task is None else class_name(task, "--task", "round")
    wanted = wanted_probes(record, keep_probe)
    _check_max_drop(max_drop, test is not None or wanted > 0 or kept_counts(record) > 0)
    kind = KINDS[record["kind"]]
    check_kind(state, data)
    if unlabelled != "background" and kind.name == "classification":
        raise ConfigError("--unlabelled: only for masks; these data name pictures")
    size, info = record["image_size"], record["backbone"]
    load = partial(
        kind.load,
        size=size,
        progress=progress,
        skip_bad=skip_bad,
        workers=config.workers,
        least=info["patch"],
        share=first_of_machine if world.size() > 1 else None,
    )
    store = load(kind.read(data, unlabelled=unlabelled))
    tests = None if test is None else load(kind.read_tests(test))
    shown = kind.shown(store)
    taken = take_probes(store, shown, wanted, state)
    cell = info.get("stride") or info["patch"]
    split: dict[str, Any] = {"seed": record["seed"], "validation": config.validation, "size": size, "cell": cell}
    prepare = partial(kind.prepare, known=known, index=index, name=name, **split)
    classes = {name for each in shown for name in each.classes}
    chosen = _what_is_new(state, taken.rest, prepare, config, classes, restart=restart, relearn=relearn)
    round_ = chosen.round
    probes = kind.probes(taken.new, round_)
    if kept := [] if test is not None else [*read_probes(state), *probes]:
        tests = load(kind.probe_pictures(kept))
    remarks = [*kind.data_remarks(data), *repeated(store.pictures, store.sha256)]
    remarks += [*taken.remarks(), *round_.remarks()]
    if test is not None and tests is not None:
        remarks += kind.check_tests(tests, round_.names, former_names(record))
        if shared := count_learned({*round_.train.picture_sha256, *round_.held.picture_sha256}, tests):
            remarks.append(f"{shared} of the test pictures are among the training pictures: they measure too much")
    source = "probe" if kept else "test"
    given = (source, tuple(probes), wanted, chosen.earlier, chosen.duplicates)
    return Prepared(kind, round_, tests, config, chosen.plan, tuple(remarks), *given)


class _New(NamedTuple):
    """A round of what was not learned before: its plan, what was, and what of that was given again."""

    round: Round
    plan: dict[str, Any]
    earlier: Earlier
    duplicates: tuple[Duplicate, ...]


def _what_is_new(
    state: State,
    store: Any,
    prepare: Callable[[Any], Round],
    config: TrainingConfig,
    classes: Set[str],
    *,
    restart: bool,
    relearn: bool,
) -> _New:
    """Leave out what was learned before.

    Where a kill may have come between a commit and the clearing of the training folder, the pictures may be those of
    the last round itself, asked for again: then what was learned before is what had been when it was begun.
    """
    record = state.version.record
    tasks = record["tasks"]
    maybe = () if restart or not may_be_committed(state) else (tasks[:-1],)
    for before in (*maybe, tasks):
        earlier = learned_pictures(state, before)
        found = find_duplicates(store.pictures, store.sha256, earlier, record, classes, relearn)
        out = {place for place, each in found.items() if each.left_out}
        rest = store.subset([place for place in range(len(store)) if place not in out]) if out else store
        round_ = prepare(rest)
        plan = plan_of(record, round_, plain(config))
        if before is tasks or just_committed(state, plan):
            break
    return _New(round_, plan, earlier, tuple(found.values()))


def round_config(record: Mapping[str, Any], overrides: Mapping[str, Any]) -> TrainingConfig:
    """How the next round is trained: as the last one, but for what is given anew."""
    if not overrides:
        return training_config(record)
    return build(TrainingConfig, {**record["settings"]["training"], **overrides}, "training")


def check_kind(state: State, data: Any) -> None:
    """Refuse data that are for another kind of task than the state learns."""
    kind = KINDS[state.version.record["kind"]]
    if (found := kind_of(data)) is not kind:
        or_else = f", or give pictures with masks: {MASK_LAYOUT}" if kind.name == "segmentation" else ""
        raise DataError(
            f"{state.path} learns {kind.name}, but these data are for {found.name}; name another state{or_else}"
        )


def taught(kind: Kind, known: Sequence[str]) -> range:
    """Channels of the classes that rounds have taught: all but the background of masks, which nobody teaches."""
    return range(1 if kind.name == "segmentation" else 0, len(known))


def _check_max_drop(max_drop: float | None, measured: bool) -> None:
    if max_drop is None:
        return
    if not 0 <= max_drop <= 100:
        raise ConfigError(f"--max-drop must lie in 0..100 percentage points, got {max_drop:g}")
    if not measured:
        raise ConfigError(
            "--max-drop compares old classes before and after: give pictures of them with --test, or have the state "
            "keep some of each round with --keep-probe N"
        )
