"""What `learn` says of a round before it trains: what is new, what may be a mistake, and what it will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sapwood.assembly import training_config
from sapwood.channels import ChannelsShown, channels_shown
from sapwood.costs import estimate_round
from sapwood.costs.estimate import Estimate
from sapwood.data.names import same_name_key
from sapwood.data.similar import similar_names
from sapwood.kinds.mask_round import MaskRound
from sapwood.learned import Duplicate, count_learned, learned_files
from sapwood.network import Network
from sapwood.objectives import OBJECTIVES
from sapwood.prefixes import first_adapted
from sapwood.preparation import Prepared, taught
from sapwood.progress import Progress
from sapwood.record import task_names
from sapwood.settings import TrainingConfig
from sapwood.state import State
from sapwood.wording import counted

_LISTED = 5
_LOOKED_AT = 64  # pictures that are predicted before training, in all
_OF_ONE_CLASS = 12
_MOSTLY = 0.5
_OF_STEPS = ("epochs", "lr", "head_lr", "optimizer", "schedule", "warmup", "weight_decay", "accumulate", "augment")


@dataclass(frozen=True)
class Called:
    """What the present version says of a class of the round.

    Attributes:
        name: the class, new or known.
        called: the known class, another one, it is taken for.
        share: of its pictures, or of its pixels, looked at.
        images: how many were looked at.
    """

    name: str
    called: str
    share: float
    images: int


@dataclass(frozen=True)
class Announcement:
    """A round before it is learned.

    Attributes:
        version: id of the version it would be learned on.
        task: name of the round.
        kind: of task.
        standing: ``new``, ``half learned`` (it would go on from its checkpoint) or ``committed`` (nothing to do).
        new: pictures that show each new class.
        known: pictures that show each known class of the round: in the round, and learned before (None for masks).
        similar: new names that nearly equal a known one: (new, known).
        duplicates: pictures that were learned before.
        called: classes most of which the present version calls by the name of one other, new ones first.
        remarks: what else a person should know of the pictures.
        estimate: of time and memory.
    """

    version: str
    task: str
    kind: str
    standing: str
    new: dict[str, int]
    known: dict[str, tuple[int, int | None]]
    similar: tuple[tuple[str, str], ...]
    duplicates: tuple[Duplicate, ...]
    called: tuple[Called, ...]
    remarks: tuple[str, ...]
    estimate: Estimate

    def lines(self) -> list[str]:
        """For people, one thing a line."""
        said = []
        if self.new:
            said.append(f"new classes: {_listed(_counted(name, count) for name, count in self.new.items())}")
        if self.known:
            counts = (_counted(name, now, before) for name, (now, before) in self.known.items())
            said.append(f"known classes: {_listed(counts)}")
        said += [
            f"the new class {name!r} is named nearly like the known class {other!r}; if they are one, use one name"
            for name, other in self.similar[:_LISTED]
        ]
        said += self._duplicates()
        what, verb = ("of the pixels of ", "are drawn as") if self.kind == "segmentation" else ("of ", "is called")
        said += [
            f"today {100 * each.share:.0f} % {what}{each.name!r} {verb} {each.called!r} ({each.images} looked at)"
            for each in self.called[:_LISTED]
        ]
        if len(self.called) > _LISTED:
            said.append(f"so it is with {len(self.called) - _LISTED} more classes; --dry-run --json lists them")
        said += self.remarks
        if self.standing == "half learned":
            said.append("this round is half learned: it goes on from its last checkpoint, if there is one")
        elif self.standing == "committed":
            said.append(f"this round was already committed as {self.version}: there is nothing to do")
        return [*said, f"estimate: {self.estimate}"]

    def _duplicates(self) -> list[str]:
        if not self.duplicates:
            return []
        out = [each for each in self.duplicates if each.left_out]
        again = [each for each in self.duplicates if not each.left_out]
        said = []
        if out:
            said.append(f"learned before, and left out: {_rounds(out)}; --relearn learns them again")
        if again:
            said.append(f"learned before, and learned again: {_rounds(again)}")
        moved = [each for each in again if each.learned_as not in (None, each.label)]
        if moved:
            changes = _listed(f"{each.picture} was {each.learned_as!r}, now {each.label!r}" for each in moved)
            said.append(f"learned before as another class: {changes}; one of the two is wrong")
        return said

    def as_json(self) -> dict[str, Any]:
        """What ``sapwood learn --dry-run --json`` prints."""
        return {
            "version": self.version,
            "task": self.task,
            "standing": self.standing,
            "new_classes": [{"name": name, "images": count} for name, count in self.new.items()],
            "known_classes": [
                {"name": name, "images": now, "images_before": before} for name, (now, before) in self.known.items()
            ],
            "similar_names": [{"name": name, "known": other} for name, other in self.similar],
            "duplicates": [vars(each) for each in self.duplicates],
            "called_today": [vars(each) for each in self.called],
            "remarks": list(self.remarks),
            "estimated_seconds": self.estimate.seconds,
            "estimated_memory": self.estimate.memory,
        }


def announce(
    state: State,
    network: Network,
    prepared: Prepared,
    standing: str,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> Announcement:
    """Look at a round before it is learned; nothing is written.

    Args:
        state: that would learn it.
        network: of the present version, not merged.
        prepared: the round.
        standing: of the round, see ``rounds.standing``.
        progress: listens.
        check: may raise between batches.

    Raises:
        ConfigError: the round is to keep hidden states, of which there are none to keep.
    """
    round_, record = prepared.round, state.version.record
    known, task = task_names(record), round_.task
    names = {entry["id"]: entry["name"] for entry in record["classes"]}
    earlier = prepared.earlier
    shows = channels_shown(round_)
    counts = shows.counts()
    before = Counter(names.get(each.label) for lessons in earlier.values() for each in lessons)
    masks = isinstance(round_, MaskRound)
    if prepared.config.cache_prefix:  # before anything is written
        first_adapted(network, OBJECTIVES[record["parts"]["objective"]].needs, prepared.kind.name)
    old = [channel for channel in task.annotated if channel not in task.new]
    remarks = list(prepared.remarks)
    if prepared.tests is not None and (leaked := count_learned(learned_files(earlier), prepared.tests)):
        remarks.append(f"{leaked} of the test pictures were learned in earlier rounds: they measure too much")
    scope = record["settings"]["objective"].get("scope")
    trains = network.adapter.moves or network.head.fitted == "gradient"
    if scope == "own" and trains and known and len(task.annotated) == 1:
        remarks.append(
            "a single class: the cross entropy over the round's own classes is zero, so training has nothing to learn "
            "from; --set objective.scope=seen compares with the other classes"
        )
    if masks and "saliency" in OBJECTIVES[record["parts"]["objective"]].needs:
        maps = any(picture.saliency is not None for picture in round_.train.pictures)
        source = "the maps in saliency/" if maps else "the network's own attention; there is no folder saliency/"
        remarks.append(f"what stands out is told by {source}")
    remarks += _formerly([round_.names[channel] for channel in task.new], record)
    if not trains and (idle := _idle(prepared.config, record)):
        remarks.append(f"nothing is trained step by step by this method, so this changes nothing: {', '.join(idle)}")
    return Announcement(
        version=state.version.id,
        task=task.name,
        kind=prepared.kind.name,
        standing=standing,
        new={round_.names[channel]: counts[channel] for channel in task.new},
        known={known[channel]: (counts[channel], None if masks else before[known[channel]]) for channel in old},
        similar=tuple(similar_names((round_.names[channel] for channel in task.new), known)),
        duplicates=prepared.duplicates,
        called=tuple(_called_today(network, prepared, known, shows, progress, check)),
        remarks=tuple(remarks),
        estimate=estimate_round(network, prepared.config, round_),
    )


def _formerly(new: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    """New classes that bear the name which a known one had before it was renamed."""
    now = {same_name_key(old): entry["name"] for entry in record["classes"] for old in entry.get("was", ())}
    found = [f"{name!r} (now {now[same_name_key(name)]!r})" for name in new if same_name_key(name) in now]
    if not found:
        return []
    return [f"a known class was called so before: {_listed(found)}; use today's name if it is the same"]


def _idle(config: TrainingConfig, record: Mapping[str, Any]) -> list[str]:
    """Settings of training steps that are not the usual ones, and of later rounds that are new too."""
    last = training_config(record) if record["tasks"] else TrainingConfig()
    changed = [
        name
        for name in _OF_STEPS
        if getattr(config, name) not in (getattr(TrainingConfig(), name), getattr(last, name))
    ]
    return [f"{name} {getattr(config, name)}" for name in changed]


def _called_today(
    network: Network,
    prepared: Prepared,
    known: Sequence[str],
    shows: ChannelsShown,
    progress: Progress,
    check: Callable[[], None],
) -> Iterator[Called]:
    """Predictions of the present version for a sample of each class, the new ones first."""
    round_, task = prepared.round, prepared.round.task
    looked_for = (*task.new, *(channel for channel in task.annotated if channel not in task.new))
    rivals = taught(prepared.kind, known)
    trained = len(round_.train)
    if len(looked_for) > _LOOKED_AT:
        looked_for = tuple(looked_for[number * len(looked_for) // _LOOKED_AT] for number in range(_LOOKED_AT))
    of_each = max(1, min(_OF_ONE_CLASS, _LOOKED_AT // max(1, len(looked_for))))
    chosen = sorted({index for channel in looked_for for index in _spread(shows.of(channel)[:trained], of_each)})
    if len(rivals) < 2 or not chosen:  # a single class is the answer to everything
        return
    sample = round_.train.subset(chosen)
    confusion = prepared.kind.confusion(network, sample, round_.names, round_.size, progress, check)
    for channel in looked_for:
        row = confusion[channel]
        best, total = int(row.argmax()), int(row.sum())
        if best != channel and best in rivals and row[best] >= _MOSTLY * total > 0:
            looked_at = int(shows.of(channel)[chosen].sum())
            yield Called(round_.names[channel], known[best], int(row[best]) / total, looked_at)


def _spread(which: Tensor, count: int) -> list[int]:
    """At most ``count`` of the indices where ``which`` is true, evenly from first to last."""
    indices = which.nonzero().flatten().tolist()
    if len(indices) <= count:
        return indices
    return [indices[position * len(indices) // count] for position in range(count)]


def _counted(name: str, count: int, before: int | None = None) -> str:
    known = "" if before is None else f", {before} before"
    return f"{name} ({counted(count, 'picture')}{known})"


def _rounds(duplicates: Sequence[Duplicate]) -> str:
    listed = _listed(f"{each.picture} (round {each.round!r})" for each in duplicates)
    return f"{len(duplicates)} of the pictures: {listed}"


def _listed(things: Iterable[str]) -> str:
    listed = list(things)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more
