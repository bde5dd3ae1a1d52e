"""Trainings that rows share: where only the reading differs, what was trained once is taken over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from sapwood.assembly import merge_settings
from sapwood.bench.origins import code_of
from sapwood.bench.rows import Run, new_classes
from sapwood.data.streams import Stream
from sapwood.errors import SapwoodError
from sapwood.heads import HEADS
from sapwood.heads.base import PooledHead
from sapwood.learner import Learner
from sapwood.methods import find_method
from sapwood.state import State
from sapwood.state.files import parse_tensors, put
from sapwood.state.training import TrainingFolder

if TYPE_CHECKING:
    from torch import Tensor

TRAINED = "trained"
"""Folder of the trainings, beside the rows."""
_MARK = "took-over"
# Heads that do any of this their own way train more than a row a class.
_TRAINING = ("make_classifier", "training_logits", "grow", "before_task")


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
        and all(getattr(HEADS[method.head], name) is getattr(PooledHead, name) for name in _TRAINING)
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
        self.code = code_of(find_method(wanted.method, wanted.head, stream.kind), wanted.backbone)

    @property
    def took_over(self) -> bool:
        """Whether a round of the run was trained by another."""
        return (self.work / _MARK).exists()

    def recall(self, memory: dict[str, Tensor]) -> None:
        """Add the features of pictures that runs of the family have computed under what was trained."""
        file = self._features()
        if file is None or not file.exists():
            return
        with suppress(OSError, SapwoodError), FileLock(file.with_suffix(".lock")):
            memory.update(parse_tensors(file.read_bytes(), file))

    def keep(self, memory: Mapping[str, Tensor]) -> None:
        """Put those of this run where the others find them."""
        file = self._features()
        if file is None or not memory:
            return
        with suppress(OSError, SapwoodError):  # as in ``_Shared.save``
            file.parent.mkdir(exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                put(file, memory)

    def _features(self) -> Path | None:
        """The family's file of features; its keys say of what they are."""
        if self.family is None:
            return None
        place = "cuda" if torch.cuda.is_available() else "cpu"  # where a learner computes
        facts = f"{self.family} {sorted(self.code.items())} {torch.__version__} {torch.get_num_threads()} {place}"
        return self.folder / f"features-{hashlib.sha256(facts.encode()).hexdigest()[:32]}.safetensors"

    def join(self, learner: Learner, index: int) -> None:
        """Let the learner's next round, ``index`` of the stream, be shared, if no class has come twice until then."""
        rounds = new_classes(self.stream)[: index + 1]
        brought = [list(part.train.classes) for part in self.stream.rounds[: index + 1]]
        if self.family is None or rounds != brought:
            learner.state = State(learner.state.path, learner.state.version)  # the round before may have been shared
            return
        record, network = learner.record, learner.network
        facts = {
            "family": json.loads(self.family),
            "weights": record["backbone"]["sha256"],
            "pictures": self.stream.sha256(),
            "rounds": rounds,
            "precision": network.precision,
            "device": str(learner.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "code": self.code,
        }
        rows = {name: value.detach().cpu().clone() for name, value in network.head.named_parameters()}
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
        self.folder, self.facts, self.rows, self.mark = folder, facts, rows, mark

    def save(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint; the last one for other runs too, without what only further steps would need."""
        super().save(tensors, meta)
        if meta["position"]["step"] < meta["steps"]:
            return
        facts = self._facts()
        shelf = self._shelf(facts)
        # Whoever is done with the folder removes it: then nothing is shared, and nothing is lost.
        with suppress(OSError, SapwoodError):
            shelf.path.parent.mkdir(exist_ok=True)
            with FileLock(shelf.path.with_suffix(".lock")):
                if shelf.load() is None:
                    shelf.begin(facts)
                    shelf.save(
                        {name: each for name, each in tensors.items() if not name.startswith("optimizer.")}, meta
                    )

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint: of this run, else the last one of another."""
        found = super().load()
        if found is not None:
            return found
        shelf = self._shelf(self._facts())
        if shelf.path.exists():
            with suppress(OSError, SapwoodError), FileLock(shelf.path.with_suffix(".lock")):
                found = shelf.load()
        if found is None:
            return None
        tensors, meta = found
        for name, old in self.rows.items():
            tensors[f"parameter.head.{name}"][: len(old)] = old  # older rows are each run's own
        self.mark.touch()
        return tensors, meta

    def _facts(self) -> dict[str, Any]:
        """What the bits of a training follow from, the way of attention among it, which is measured."""
        return {**self.facts, "attention": (self.plan() or {}).get("attention")}

    def _shelf(self, facts: Mapping[str, Any]) -> TrainingFolder:
        return TrainingFolder(self.folder / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32])
