"""A row: what a run measured, what it cost, and what is needed to get it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from sapwood.assembly import Overrides
from sapwood.bench.origins import OWN, code_of, others
from sapwood.bench.summary import overall
from sapwood.costs import state_cost
from sapwood.data.streams import MaskStream, Stream
from sapwood.functional.metrics import (
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    intransigence,
    last_accuracy,
    learning_accuracy,
)
from sapwood.history import libraries
from sapwood.kinds import KINDS
from sapwood.kinds.base import Size
from sapwood.learner import Learner
from sapwood.methods import find_method

RANDOM = "random:"
"""Names of backbones with random weights begin so: the control of every benchmark."""


@dataclass(frozen=True)
class Run:
    """What is run.

    Attributes:
        method: a recipe or a composition.
        backbone: by name.
        seed: of training; the order of classes belongs to the stream.
        image_size: pixels of a view: a side, or (height, width).
        head: another head than the recipe's.
        settings: per part, over the recipe's.
        joint_at_end: train methods that need all data only once, on everything; the average over rounds is then not
            measured.
    """

    method: str
    backbone: str
    seed: int
    image_size: Size
    head: str | None = None
    settings: Overrides = field(default_factory=dict)
    joint_at_end: bool = False

    @property
    def label(self) -> str:
        """Name of the row: the method, the head if it is another than the recipe's, ``+T`` if it is told the rounds."""
        told = "+T" if self.settings.get("adapter", {}).get("expected_tasks") is not None else ""
        return f"{self.method}{told}" if self.head is None else f"{self.method}{told}/{self.head}"


@dataclass(frozen=True)
class Course:
    """What came of a stream.

    Attributes:
        learner: after the last round.
        accuracy: the matrix; [i][j] after round i on what round j brought.
        summaries: the headline fractions after each round.
        tasks: what was recorded of each time that something was learned.
        accepted: what part of the pictures of classes still to come was taken for known, after each round.
    """

    learner: Learner
    accuracy: Sequence[Sequence[float | None]]
    summaries: Sequence[Mapping[str, Any]]
    tasks: Sequence[Mapping[str, Any]]
    accepted: Sequence[float | None] = ()


def row_of(stream: Stream, wanted: Run, course: Course) -> dict[str, Any]:
    """The row of a run, ready for JSON; fractions, None where nothing was measured."""
    record = course.learner.record
    recipe = find_method(wanted.method, wanted.head, stream.kind)
    code, outside = code_of(recipe, wanted.backbone), others(recipe, wanted.backbone)
    count = len(stream.rounds)
    square = [[*row, *[None] * (count - len(row))] for row in course.accuracy]
    # Of pictures the tests of each round, of masks its classes: then a row's mean is that over all of them.
    if stream.kind == "segmentation":
        weights = [len(names) for names in new_classes(stream)]
    else:
        weights = [len(part.test) for part in stream.rounds]
    if stream.kind == "segmentation" and stream.domains:
        weights = [1] * count
    last = course.tasks[-1]
    cost = state_cost(course.learner.state.path)
    headline = _headline(stream, course.summaries[-1])
    score = headline.get("miou_all") if headline else last_accuracy(square, weights)
    over_rounds = _over_rounds(square, weights)
    if isinstance(stream, MaskStream):
        over_rounds["average_incremental_accuracy"] = _mean(
            [overall(each, stream.background) for each in course.summaries]
        )
    return {
        "benchmark": stream.name,
        "kind": stream.kind,
        "measure": KINDS[stream.kind].measure,
        "method": wanted.label,
        "weights": "random" if wanted.backbone.startswith(RANDOM) else "pretrained",
        "backbone": wanted.backbone,
        "seed": wanted.seed,
        "order_seed": stream.order_seed,
        "reconstructed": recipe.reconstructed,
        "upper_bound": recipe.all_data,
        "last_accuracy": score,
        **headline,
        **over_rounds,
        "false_accept": _mean(course.accepted[:-1]),
        "accuracy": square,
        "after_each": list(course.summaries),
        "classes": list(stream.classes),
        "rounds": new_classes(stream),
        "round_names": [part.name for part in stream.rounds],
        "train_pictures": [len(part.train) for part in stream.rounds],
        "test_pictures": [len(part.test) for part in stream.rounds],
        "trainable_parameters": max(task["trainable_parameters"] for task in course.tasks),
        "bytes": last["declared_bytes"],
        "state_bytes": state_bytes(record, course.learner.network.adapter.history),
        "gmacs": cost.gmacs,
        "fitted_parameters": cost.trainable_parameters,
        "train_gmacs": sum(task["train_gmacs"] for task in course.tasks),
        # Rounds of a row that an earlier release began have not counted them.
        "pass_gmacs": sum(task.get("pass_gmacs", 0.0) for task in course.tasks),
        "peak_memory": max(task["peak_memory"] for task in course.tasks),
        "train_seconds": sum(task["seconds"] for task in course.tasks),
        "milliseconds_per_image": 1000 * last["seconds_per_picture"],
        "netscore": cost.netscore(100 * score) if score else None,
        "image_size": wanted.image_size,
        "settings": record["settings"],
        "parts": record["parts"],
        "head_fits": [task["head_fit"] for task in course.tasks],
        "data_sha256": stream.sha256(),
        "pictures_sha256": stream.pictures_sha256(),
        "split": stream.split,
        "weights_sha256": record["backbone"]["sha256"],
        "code_sha256": code[OWN],
        "code": code,
        "threads": last["threads"],
        "device": last["device"],
        "precision": last["precision"],
        "libraries": libraries() | dict(each.distribution for each in outside if each.distribution),
        "run": asdict(wanted),
    }


def state_bytes(record: Mapping[str, Any], history: str) -> int:
    """Bytes of the files without which the state could neither predict nor learn on."""
    tasks = record["tasks"]
    parts = ("adapter", "head", "objective", "backbone")
    wanted = [f"{tasks[-1]['folder']}/{part}.safetensors" for part in parts]
    if history == "all":
        wanted += [f"{task['folder']}/adapter.safetensors" for task in tasks[:-1]]
    return sum(record["files"][name]["bytes"] for name in wanted if name in record["files"])


def new_classes(stream: Stream) -> list[list[str]]:
    """The classes that each round shows for the first time."""
    seen: set[str] = set()
    found = []
    for part in stream.rounds:
        found.append([name for name in part.train.classes if name not in seen])
        seen |= set(part.train.classes)
    return found


def _headline(stream: Stream, summary: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(stream, MaskStream):
        return {}
    names = {"miou_old": "old", "miou_new": "new", "miou_background": "background"}
    whole = {"miou_all": overall(summary, stream.background), "background": stream.background}
    return whole | {name: summary[part] for name, part in names.items()}


def _over_rounds(accuracy: Sequence[Sequence[float | None]], weights: Sequence[int]) -> dict[str, float | None]:
    """Measures that need every round; None where rounds were not measured."""
    measured = all(cell is not None for row, line in enumerate(accuracy) for cell in line[: row + 1])
    return {
        "average_incremental_accuracy": average_incremental_accuracy(accuracy, weights) if measured else None,
        "forgetting": forgetting(accuracy) if measured else None,
        "backward_transfer": backward_transfer(accuracy) if measured else None,
        "learning_accuracy": learning_accuracy(accuracy) if measured else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them was not measured."""
    measured = [value for value in values if value is not None]
    return fmean(measured) if measured and len(measured) == len(values) else None


def with_intransigence(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their intransigence (Chaudhry et al., ECCV 2018): what learning a round loses against joint.

    The mean over rounds k of a*[k][k] - a[k][k], a* of the joint bound with the same weights and seed; None without.
    """
    joint = {(row["weights"], row["seed"]): row["accuracy"] for row in rows if row["method"] == "joint"}
    return [{**row, "intransigence": _gap(joint.get((row["weights"], row["seed"])), row["accuracy"])} for row in rows]


def _gap(bound: Sequence[Sequence[float | None]] | None, accuracy: Sequence[Sequence[float | None]]) -> float | None:
    reference = _just_after(bound or ())
    whole = len(reference) == len(_just_after(accuracy)) == len(accuracy)
    return intransigence(accuracy, reference) if whole else None


def _just_after(accuracy: Sequence[Sequence[float | None]]) -> list[float]:
    """Of each round, where it was measured."""
    return [value for index, line in enumerate(accuracy) if (value := line[index]) is not None]
