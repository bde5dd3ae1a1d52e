"""Trainings that rows share: where only the reading differs, what was trained once is taken over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from sapwood.assembly import merge_settings
from sapwood.bench.rows import Run, code_sha256, new_classes
from sapwood.data.streams import Stream
from sapwood.heads import HEADS
from sapwood.heads.base import Head
from sapwood.learner import Learner
from sapwood.methods import find_method
from sapwood.state import State
from sapwood.state.training import TrainingFolder

if TYPE_CHECKING:
    from torch import Tensor

TRAINED = "trained"
"""Folder of the trainings, beside the rows."""
_MARK = "took-over"


def family(wanted: Run, kind: str) -> str | None:
    """What the trainings of a run follow from beside the pictures; None where nobody else can use them.

    Runs of a family differ in their heads alone. With a loss over a round's own classes nothing that is trained in it
    depends on how older classes are read off: their rows have gradients of exactly zero.

    >>> of = lambda method: family(Run(method, "random:dinov2-tiny", 0, 28), "classification")
    >>> of("seq-lora") == of("seq-lora+ridge") != of("c-lora")
    True
    >>> print(of("lora+lwf"))  # distils what the old rows say
    None
    """
    method = find_method(wanted.method, wanted.head, kind)
    settings = merge_settings(method, wanted.settings)
    shared = (
        kind == "classification"
        and not method.all_data
        and method.adapter != "none"
        and method.objective == "finetune"
        and settings["objective"]["scope"] == "own"
        # Other classifiers train more than rows: a scale that all classes share.
        and HEADS[method.head].make_classifier is Head.make_classifier
    )
    if not shared:
        return None
    own = {part: values for part, values in settings.items() if part != "head"}
    own["read"] = {"blocks": settings["head"].get("blocks")}
    facts = {"backbone": wanted.backbone, "seed": wanted.seed, "image_size": wanted.image_size, "settings": own}
    return json.dumps(facts | {"adapter": method.adapter}, sort_keys=True)


def order_of_work(runs: Mapping[str, Run], kind: str) -> list[str]:
    """Names of the runs, those that may take something over last among those of their seed."""
    seen: set[str] = set()
    later: set[str] = set()
    for name, wanted in runs.items():
        key = family(wanted, kind)
        if key in seen:
            later.add(name)
        elif key is not None:
            seen.add(key)
    return sorted(runs, key=lambda name: (runs[name].seed, name in later))


class Sharing:
    """What a run trains in its rounds, put where runs of its family find it; and what these have put there.

    Args:
        folder: of the trainings.
        stream: what is learned.
        wanted: the run.
        work: folder of the run's files.
    """

    def __init__(self, folder: Path, stream: Stream, wanted: Run, work: Path) -> None:
        self.folder, self.stream, self.work = folder, stream, work
        self.family = family(wanted, stream.kind)

    @property
    def took_over(self) -> bool:
        """Whether a round of the run was trained by another."""
        return (self.work / _MARK).exists()

    def join(self, learner: Learner, index: int) -> None:
        """Let the learner's next round, ``index`` of the stream, be shared if all its classes are new."""
        rounds = new_classes(self.stream)[: index + 1]
        if self.family is None or rounds[index] != list(self.stream.rounds[index].train.classes):
            learner.state = State(learner.state.path, learner.state.version)  # the round before may have been shared
            return
        record = learner.record
        facts = {
            "family": json.loads(self.family),
            "weights": record["backbone"]["sha256"],
            "pictures": self.stream.sha256(),
            "rounds": rounds,
            "code": code_sha256(),
        }
        rows = {name: value.detach().cpu().clone() for name, value in learner.network.head.named_parameters()}
        learner.state = _Joined(learner.state, self.folder, facts, rows, self.work / _MARK)


class _Joined(State):
    """A state whose training folder shares what is finished."""

    def __init__(self, state: State, *shared: Any) -> None:
        super().__init__(state.path, state.version)
        self._shared = shared

    @property
    def training(self) -> TrainingFolder:
        """The checkpoint of the task that is being learned, by this run or by another."""
        return _Shared(self.path / "training", *self._shared)


class _Shared(TrainingFolder):
    """A training folder whose last checkpoint is one for all."""

    def __init__(
        self, path: Path, folder: Path, facts: Mapping[str, Any], rows: Mapping[str, Tensor], mark: Path
    ) -> None:
        super().__init__(path)
        self.facts, self.rows, self.mark = facts, rows, mark
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        self.shelf = TrainingFolder(folder / key)

    def save(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint; the last one for other runs too, without what only further steps would need."""
        super().save(tensors, meta)
        if meta["position"]["step"] < meta["steps"]:
            return
        self.shelf.path.parent.mkdir(exist_ok=True)
        with self._held():
            if self.shelf.load() is None:
                lasting = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
                self.shelf.begin(self.facts)
                self.shelf.save(lasting, meta)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint: of this run, else the last one of another."""
        found = super().load()
        if found is not None:
            return found
        if not self.shelf.path.exists():
            return None
        with self._held():
            found = self.shelf.load()
        if found is None:
            return None
        tensors, meta = found
        for name, old in self.rows.items():
            tensors[f"parameter.head.{name}"][: len(old)] = old  # older rows are each run's own
        self.mark.touch()
        return tensors, meta

    def _held(self) -> FileLock:
        return FileLock(self.shelf.path.with_suffix(".lock"))
