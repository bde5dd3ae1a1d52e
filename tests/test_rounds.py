"""What a round asks of objective and head, when, and in which mode; on masks, in real rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.heads.base import Head
from sapwood.heads.dense import DenseHead
from sapwood.kinds.mask_round import MaskRound
from sapwood.learner import Learner
from sapwood.objectives.base import Outputs
from sapwood.objectives.mib import ModellingTheBackground
from sapwood.task import Task

FAST = {"epochs": 2, "batch_size": 4, "precision": "fp32", "validation": 0.25}
STEPS = 4  # 8 pictures in 2 batches, twice
Folders = Callable[..., Path]


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    return create(tmp_path / "state")


def create(path: Path, **settings: Any) -> Learner:
    options: dict[str, Any] = {"backbone": "random:dinov2-tiny", "image_size": (28, 42), "kind": "segmentation"}
    return Learner.create(path, method="clora+mib", settings=settings, **options)


@pytest.fixture
def data(mask_folder: Folders) -> tuple[Path, Path]:
    return (
        mask_folder(["road", "car"], 11, name="first"),
        mask_folder(["tree"], 11, also=["car"], name="second"),
    )


class Diary:
    """What happened, in order; the network is that of the running round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.patch = monkeypatch

    def note(self, owner: type, name: str, look: Callable[..., Any] = lambda *_: "") -> None:
        original = getattr(owner, name)

        def noted(*arguments: Any, **named: Any) -> Any:
            self.said.append(f"{name} {look(*arguments)}".strip())
            return original(*arguments, **named)

        self.patch.setattr(owner, name, noted)


def test_when_head_and_objective_are_called(
    learner: Learner, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary(monkeypatch)

    def mode(head: Head, *_: Any) -> str:
        return "training" if head.training else "resting"

    diary.note(DenseHead, "grow", mode)
    diary.note(DenseHead, "before_task", mode)
    diary.note(DenseHead, "after_task", mode)
    diary.note(ModellingTheBackground, "initialise", lambda _, head, task: mode(head))
    diary.note(MaskRound, "validate", lambda _, network, feed: mode(network.head))

    def before_task(self: Any, batches: Callable[[], Iterable[Any]], told: Callable[[Any], Any], task: Task) -> None:
        diary.said.append("look")
        shown = [batch for _ in range(2) for batch in batches()]
        assert len(shown) == 4
        assert all(torch.equal(one.images, two.images) for one, two in zip(shown[:2], shown[2:], strict=True))
        answers = [told(batch) for batch in shown[:2]]
        if task.index == 0:
            assert answers == [None, None]
        else:
            for answer, batch in zip(answers, shown, strict=False):
                assert isinstance(answer, Outputs)
                assert answer.logits.shape == (len(batch.targets), 3, 28, 42)  # before the round
                assert not answer.logits.requires_grad

    @contextmanager
    def stepping(self: Any, head: Head, task: Task) -> Iterator[None]:
        assert head.training
        before = head.classifier.weight.detach().clone()
        yield
        diary.said.append(f"step {not torch.equal(before, head.classifier.weight)}")

    monkeypatch.setattr(ModellingTheBackground, "before_task", before_task)
    monkeypatch.setattr(ModellingTheBackground, "stepping", stepping)
    expected = [
        "grow resting",
        "before_task resting",
        "initialise resting",
        "look",
        *["step True"] * (STEPS // 2),
        "validate resting",  # between epochs
        *["step True"] * (STEPS // 2),
        "after_task resting",
        "validate resting",
    ]
    for folder, name in zip(data, ("first", "second"), strict=True):
        diary.said.clear()
        learner.learn(folder, task=name, training=FAST)
        assert diary.said == expected


def test_training_forwards_are_in_training_mode(
    learner: Learner, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    original = DenseHead.forward

    def forward(self: DenseHead, tokens: Any) -> Tensor:
        trains = next(self.classifier.parameters()).requires_grad  # a teacher's do not
        seen.append((trains and torch.is_grad_enabled(), self.training))
        return original(self, tokens)

    learner.learn(data[0], task="first", training=FAST)
    monkeypatch.setattr(DenseHead, "forward", forward)
    learner.learn(data[1], task="second", training=FAST)
    assert {student for student, _ in seen} == {True, False}
    assert all(student == training for student, training in seen)


def test_an_adapter_that_stays(learner: Learner, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round then changes the head alone, as with ``adapt=first``."""
    monkeypatch.setattr(ModellingTheBackground, "stays", lambda self, task: task.index > 0)
    learner.learn(data[0], task="first", training=FAST)
    before = {name: value.clone() for name, value in learner.network.adapter.state_dict().items()}
    weight = learner.network.head.classifier.weight.detach().clone()
    learner.learn(data[1], task="second", training=FAST)
    after = learner.network.adapter.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert not torch.equal(learner.network.head.classifier.weight[:3], weight)
    head = sum(parameter.numel() for parameter in learner.network.head.parameters())
    assert learner.record["tasks"][1]["trainable_parameters"] == head


def test_what_one_round_freezes_the_next_trains(
    learner: Learner, data: tuple[Path, Path], mask_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process as in several."""

    def initialise(self: Any, head: DenseHead, task: Task) -> None:
        if task.index == 1 and head.decoder is not None:
            head.decoder.requires_grad_(False)

    monkeypatch.setattr(ModellingTheBackground, "initialise", initialise)
    third = mask_folder(["sign"], 8, name="third")
    counted = []
    decoders = []
    for folder in (*data, third):
        learner.learn(folder, training=FAST)
        counted.append(learner.record["tasks"][-1]["trainable_parameters"])
        decoders.append(learner.network.head.get_parameter("decoder.weight").detach().clone())
    assert torch.equal(decoders[0], decoders[1])
    assert not torch.equal(decoders[1], decoders[2])
    assert counted[0] - counted[1] == 32 * 32 + 32 - 33  # the decoder stays, a row is new
    assert counted[2] - counted[0] == 2 * 33


@pytest.mark.parametrize("start", ["official", "preserve"])
def test_branches_merge_and_open_again(start: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state", head={"branches": "parallel", "branch_start": start})
    learner.learn(data[0], task="first", training=FAST)
    first = learner.record["tasks"][0]["trainable_parameters"]
    again = Learner.open(tmp_path / "state")
    merged = {name: value.clone() for name, value in again.network.head.state()[0].items()}
    assert merged.keys() == learner.network.head.state()[0].keys()
    assert all(torch.equal(value, learner.network.head.state()[0][name]) for name, value in merged.items())
    again.learn(data[1], task="second")
    # In the second round a row is new, and the old branch (a convolution and a normalisation) does not learn; a branch
    # that begins as the merged one has a bias in place of its normalisation.
    assert again.record["tasks"][1]["trainable_parameters"] - first == 33 - (32 * 32 + 64) - (
        32 if start == "preserve" else 0
    )
    for picture in (data[1] / "images").iterdir():
        one, two = (each.predict(picture)[0].mask for each in (again, Learner.open(tmp_path / "state")))
        assert (one == two).all()


def test_with_an_unknown_class_what_is_drawn_is_a_class(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sapwood.heads import HEADS

    monkeypatch.setattr("sapwood.assembly.check_head", lambda *_: None)  # mib would not ask for it
    assert HEADS["dense"] is DenseHead
    learner = create(tmp_path / "state", head={"background": "unknown"})
    learner.learn(data[0], task="first", training=FAST)
    head = learner.network.head
    assert isinstance(head, DenseHead)
    assert head.unknown is not None
    with torch.no_grad():
        head.unknown.bias.fill_(50.0)  # certain that all is unknown
    for answer in learner.predict(data[0] / "images"):
        assert set(answer.shares) == {"background"}
