"""The learner on masks: rounds whose pictures hold more than they label, the teacher's cost, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sapwood import rounds
from sapwood.errors import ConfigError, DataError
from sapwood.learner import Learner
from sapwood.network import Network, Teacher
from sapwood.progress import Progress

pytestmark = pytest.mark.usefixtures("settled")

Folders = Callable[..., Path]
TINY, SIZE = "random:dinov2-tiny", (28, 42)
FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32"}


def create(path: Path, method: str = "clora+mib", **more: Any) -> Learner:
    return Learner.create(path, **{"backbone": TINY, "image_size": SIZE, "kind": "segmentation"} | more, method=method)


def tensors(learner: Learner) -> dict[str, Tensor]:
    """What the last round stored, by file and name."""
    folder = learner.record["tasks"][-1]["folder"]
    names = [name for name in learner.record["files"] if name.startswith(folder) and name.endswith(".safetensors")]
    found = {name: learner.state.tensors(name) for name in names}
    return {f"{name.removeprefix(folder)}:{key}": value for name in names for key, value in found[name].items()}


def same(one: Learner, two: Learner) -> bool:
    mine, other = tensors(one), tensors(two)
    return mine.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in mine.items())


def masks(learner: Learner, pictures: Any, **options: Any) -> list[np.ndarray]:
    return [answer.mask for answer in learner.predict(pictures, **options)]


def equal(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return len(one) == len(two) and all(np.array_equal(mine, other) for mine, other in zip(one, two, strict=True))


def all_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Seen:
    """Network, teacher and targets at the start of the last round's training."""

    network: Network
    teacher: Teacher | None
    targets: set[int]
    own: dict[str, int]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Looks on while rounds train."""
    found, train = Seen(), rounds.train

    def look(network: Network, objective: Any, feed: Any, *rest: Any, teacher: Teacher | None, **more: Any) -> Any:
        found.network, found.teacher = network, teacher
        found.targets = {int(value) for batch in feed.batches(0, 0) for value in batch.targets.unique()}
        found.own = {
            "student": storage(network),
            "both": storage(network, *([] if teacher is None else [teacher.network, teacher.adapter, teacher.head])),
        }
        if teacher is not None:
            found.said = compare(network, teacher, feed)  # type: ignore[attr-defined]
        return train(network, objective, feed, *rest, teacher=teacher, **more)

    monkeypatch.setattr(rounds, "train", look)
    return found


def storage(*modules: nn.Module) -> int:
    """Bytes of all distinct tensors of some modules, the adapters' plain attributes (what they folded) included."""
    held = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    for module in modules:
        held += [layer.changed for layer in getattr(module, "adapted", []) if layer.changed is not None]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}.values())


@torch.no_grad()
def compare(network: Network, teacher: Teacher, feed: Any) -> tuple[Tensor, Tensor]:
    """Probabilities [B, K, H, W] of student and teacher."""
    images = next(iter(feed.batches(0, 0))).images
    return network(images).logits.softmax(1), teacher(images).logits.softmax(1)


# --- rounds and the record


def test_the_record_tells_what_happened(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    first = mask_folder(["road", "car"], 12, name="first")
    second = mask_folder(["tree"], 4, also=["road"], name="second")
    learner = create(tmp_path / "state", seed=3)
    assert learner.classes_ == ()
    learner.learn(first, task="street", training=FAST)
    assert seen.targets == {0, 1, 2}
    learner.learn(second)
    assert seen.targets == {0, 3}  # the roads of the second round are background
    assert learner.classes_ == ("background", "road", "car", "tree")
    one, two = Learner.open(tmp_path / "state").record["tasks"]
    assert (one["name"], one["classes"], one["annotated"]) == ("street", ["road", "car"], ["road", "car"])
    assert (two["name"], two["classes"], two["annotated"]) == ("task-2", ["tree"], ["tree"])
    assert (one["images"], one["validation_images"], two["images"], two["validation_images"]) == (12, 1, 4, 0)
    lora, decoder = 2 * 2 * 2 * 16 * 32, 32 * 32 + 32
    assert one["trainable_parameters"] == lora + decoder + 3 * 33
    assert two["trainable_parameters"] == lora + decoder + 4 * 33
    assert one["declared_bytes"] == 4 * one["trainable_parameters"]
    assert learner.accuracy_ == [[one["validation_accuracy"]], [None, None]]
    assert 0 <= one["validation_accuracy"] <= 1
    assert learner.record["accuracy_on"] == ["validation", "validation"]
    assert learner.record["kind"] == "segmentation"
    rows = [json.loads(row) for row in learner.state.text(f"{one['folder']}/pictures.jsonl").splitlines()]
    assert sorted(row["split"] for row in rows) == ["train"] * 11 + ["validation"]
    assert set(rows[0]) == {"sha256", "split"}


def test_mib_keeps_what_finetuning_forgets(tmp_path: Path, mask_folder: Folders) -> None:
    """Stripes of two classes, a third being background; then of the third, the first two being background."""
    first = mask_folder(["road", "car"], 24, also=["tree"], name="first")
    second = mask_folder(["tree"], 24, also=["road", "car"], name="second")
    test = mask_folder(["road", "car", "tree"], 8, name="test", seed=7)
    learned = create(tmp_path / "mib").learn(first, training={**FAST, "epochs": 12, "lr": 1e-2})
    before = learned.evaluate(test)
    assert before.old > 0.5
    after = learned.learn(second).evaluate(test)
    assert after.old > 0.9 * before.old
    assert after.new > 0.6
    forgot = create(tmp_path / "finetune", "clora").learn(first, training={**FAST, "epochs": 12, "lr": 1e-2})
    assert forgot.learn(second).evaluate(test).old < 0.1


def test_more_pictures_of_a_known_class_and_a_new_one(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    learner = create(tmp_path / "state").learn(mask_folder(["road", "car"], 4, name="first"), training=FAST)
    learner.learn(mask_folder(["tree", "car"], 4, also=["road"], name="second"))
    assert seen.targets == {0, 2, 3}
    (task,) = learner.record["tasks"][1:]
    assert (task["classes"], task["annotated"]) == (["tree"], ["car", "tree"])
    learner.learn(mask_folder(["road"], 4, name="third"))
    assert seen.targets == {0, 1}
    assert learner.classes_ == ("background", "road", "car", "tree")
    assert learner.record["tasks"][2]["classes"] == []
    assert learner.accuracy_[2][2] is None


def test_names_count_and_values_do_not(tmp_path: Path, mask_folder: Folders) -> None:
    plain = {**FAST, "augment": False}  # random views depend on the masks' bytes
    learned = []
    for number, values in enumerate(({"road": 1, "car": 2}, {"road": 77, "car": 200})):
        learner = create(tmp_path / f"state-{number}")
        learner.learn(mask_folder(["road", "car"], 4, name=f"first-{number}", values=values), training=plain)
        other = {"tree": 1, "road": 3} if number else {"tree": 2, "road": 1}
        learned.append(learner.learn(mask_folder(["road", "tree"], 4, name=f"second-{number}", values=other)))
    assert learned[0].classes_ == learned[1].classes_ == ("background", "road", "car", "tree")
    assert same(*learned)


def test_the_background_may_have_any_value_and_spelling(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    folder = mask_folder(["road", "car"], 4)
    swapped = shutil.copytree(folder, tmp_path / "swapped")
    for path in (swapped / "masks").iterdir():
        values = np.asarray(Image.open(path))
        Image.fromarray(np.array([5, 0, 2], np.uint8)[values]).save(path)
    (swapped / "classes.json").write_text('{"road": 0, "_Background_": 5, "car": 2}')
    plain = {**FAST, "augment": False}
    one = create(tmp_path / "one").learn(folder, training=plain)
    two = create(tmp_path / "two").learn(swapped, training=plain)
    assert one.classes_ == two.classes_ == ("background", "road", "car")
    assert same(one, two)
    assert seen.targets == {0, 1, 2}


def test_what_is_not_labelled_may_be_ignored(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    first, second = mask_folder(["road"], 4, name="first"), mask_folder(["car"], 4, also=["road"], name="second")
    learner = create(tmp_path / "state").learn(first, training=FAST)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    learner.learn(second, unlabelled="ignore")
    assert seen.targets == {2, 255}
    assert not same(learner, Learner.open(tmp_path / "other").learn(second))
    assert seen.targets == {0, 2}


def test_a_class_of_the_legend_without_a_pixel_is_not_learned(tmp_path: Path, mask_folder: Folders) -> None:
    learner = create(tmp_path / "state").learn(mask_folder({"ghost": 0, "road": 4}, 4, name="first"), training=FAST)
    assert learner.classes_ == ("background", "road")
    learner.learn(mask_folder({"road": 0, "ghost": 4}, 4, name="second"))
    assert learner.classes_ == ("background", "road", "ghost")
    assert learner.record["tasks"][1]["annotated"] == ["ghost"]


def test_test_masks_are_measured_and_choose_nothing(tmp_path: Path, mask_folder: Folders) -> None:
    first, second = mask_folder(["road", "car"], 12, name="first"), mask_folder(["tree"], 4, name="second")
    test = mask_folder(["road", "tree"], 4, name="test", seed=9)
    without = create(tmp_path / "without").learn(first, training=FAST).learn(second)
    learner = create(tmp_path / "with").learn(first, training=FAST, test=test)
    assert learner.accuracy_ == [[learner.evaluate(test).old]]
    learner.learn(second, test=test)
    assert same(without, learner)
    measured = learner.evaluate(test)
    assert learner.accuracy_[1] == [measured.old, measured.new]
    assert learner.record["accuracy_on"] == ["test", "test"]
    summary = learner.record["tasks"][1]["measured"]
    assert summary == {key: getattr(measured, key) for key in ("miou", "old", "new", "background", "per_class")}
    without.evaluate(test, record=True)
    assert without.accuracy_[1] == learner.accuracy_[1]


def test_validation_without_a_pixel_of_the_rounds_classes_measures_nothing(
    tmp_path: Path, mask_folder: Folders
) -> None:
    learner = create(tmp_path / "state").learn(mask_folder({"road": 1}, 12), training=FAST)
    accuracy = learner.record["tasks"][0]["validation_accuracy"]
    assert accuracy is None or 0 <= accuracy <= 1
    json.dumps({"accuracy": learner.accuracy_, "tasks": learner.record["tasks"]}, allow_nan=False)
    for row in learner.state.text(f"{learner.record['tasks'][0]['folder']}/log.jsonl").splitlines():
        json.dumps(json.loads(row), allow_nan=False)


# --- going back, opening, merging


def test_undo_goes_back_and_the_round_can_be_learned_anew(tmp_path: Path, mask_folder: Folders) -> None:
    first, second = mask_folder(["road", "car"], 6, name="first"), mask_folder(["tree"], 6, name="second")
    learner = create(tmp_path / "state").learn(first, training=FAST)
    drawn = masks(learner, second / "images")
    kept = tensors(learner.learn(second))
    learner.undo()
    assert learner.classes_ == ("background", "road", "car")
    assert equal(masks(learner, second / "images"), drawn)
    again = tensors(learner.learn(second))
    assert kept.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in kept.items())


@pytest.mark.parametrize("method", ["clora+mib", "clora-reinit+mib", "full+mib"])
def test_merging_draws_the_same_masks_and_learning_goes_on(method: str, tmp_path: Path, mask_folder: Folders) -> None:
    first, second = mask_folder(["road", "car"], 6, name="first"), mask_folder(["tree"], 6, name="second")
    strong = {**FAST, "lr": 2e-2}
    apart = create(tmp_path / "apart", method).learn(first, training=strong)
    paths = sorted((second / "images").iterdir())
    images = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))
    merged = Learner.open(shutil.copytree(tmp_path / "apart", tmp_path / "merged"))
    with torch.no_grad():
        logits = apart.network.predict(images)
        torch.testing.assert_close(merged.merge().network.predict(images), logits, atol=1e-4, rtol=0)
        if method != "full+mib":
            with apart.network.bare():
                assert (apart.network.predict(images) - logits).abs().max() > 1e-2  # there is something to merge
    for one, other in zip(masks(merged, second / "images"), masks(apart, second / "images"), strict=True):
        assert (one != other).mean() < 1e-3  # on a border a pixel may fall either way
    assert same(apart.learn(second), merged.learn(second))


@pytest.mark.parametrize("method", ["clora+mib", "full+mib"])
def test_opened_computes_as_it_learned(method: str, tmp_path: Path, mask_folder: Folders) -> None:
    first, second = mask_folder(["road", "car"], 6, name="first"), mask_folder(["tree"], 6, name="second")
    learner = create(tmp_path / "state", method).learn(first, training={**FAST, "precision": "bf16"})
    opened = Learner.open(tmp_path / "state")
    assert opened.network.precision == "bf16"
    assert equal(masks(opened, second / "images"), masks(learner, second / "images"))
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    learner.learn(second, training={"precision": "fp32"})
    assert same(learner, Learner.open(tmp_path / "copy").learn(second, training={"precision": "fp32"}))


# --- the teacher


@pytest.mark.parametrize(
    ("method", "copies"),
    [
        ("clora+mib", False),
        ("clora+lwf", False),
        ("clora+ilt", False),
        ("clora-reinit+mib", False),
        ("frozen+mib", False),
        ("full+mib", True),
    ],
)
def test_there_is_never_a_second_backbone(
    method: str, copies: bool, tmp_path: Path, mask_folder: Folders, seen: Seen
) -> None:
    learner = create(tmp_path / "state", method).learn(mask_folder(["road"], 4, name="first"), training=FAST)
    assert seen.teacher is None
    learner.learn(mask_folder(["car"], 4, name="second"))
    assert seen.teacher is not None
    backbone = storage(learner.network.backbone)
    clone = storage(seen.teacher.adapter) + storage(seen.teacher.head)
    extra = seen.own["both"] - seen.own["student"]
    assert seen.teacher.network_is_copy == copies
    if copies:
        assert extra > backbone
    else:
        assert extra == clone < backbone / 2
        assert seen.teacher.network is seen.network
    assert not any(parameter.requires_grad for parameter in seen.teacher.adapter.parameters())
    assert not any(parameter.requires_grad for parameter in seen.teacher.head.parameters())


@pytest.mark.parametrize("method", ["clora+mib", "clora-reinit+mib", "frozen+mib", "full+mib"])
@pytest.mark.parametrize("new", [["car"], ["car", "tree"]])
def test_a_round_of_mib_starts_with_the_teachers_probabilities(
    method: str, new: list[str], tmp_path: Path, mask_folder: Folders, seen: Seen
) -> None:
    """What the teacher calls background is spread evenly over background and new classes; the rest stays."""
    strong = {**FAST, "lr": 1e-2}
    learner = create(tmp_path / "state", method).learn(mask_folder(["road", "sign"], 4, name="first"), training=strong)
    for number, classes in enumerate((new, ["bike"])):  # also in a third round, where the bias is lowered again
        learner.learn(mask_folder(classes, 4, name=f"later-{number}"))
        student, teacher = seen.said  # type: ignore[attr-defined]
        old = teacher.shape[1]
        assert student.shape[1] == old + len(classes)
        torch.testing.assert_close(student[:, 1:old], teacher[:, 1:], atol=1e-6, rtol=1e-5)
        share = teacher[:, :1] / (len(classes) + 1)
        torch.testing.assert_close(student[:, :1], share, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(student[:, old:], share.expand(-1, len(classes), -1, -1), atol=1e-6, rtol=1e-5)
        assert teacher.std(0).max() > 1e-4  # else anything would do


def test_other_objectives_start_elsewhere(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    learner = create(tmp_path / "state", "clora+lwf").learn(mask_folder(["road"], 4, name="first"), training=FAST)
    learner.learn(mask_folder(["car"], 4, name="second"))
    student, teacher = seen.said  # type: ignore[attr-defined]
    assert (student[:, 1:2] - teacher[:, 1:]).abs().max() > 1e-3


# --- what is refused, and that nothing is touched


def overwrite(folder: Path, value: int) -> Path:
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), value)).save(path)
    return folder


def with_small(folder: Path) -> Path:
    for part, mode in (("images", "RGB"), ("masks", "L")):
        Image.new(mode, (40, 13)).save(folder / part / "small.png")
    return folder


def test_refusals_leave_the_state_as_it_was(tmp_path: Path, mask_folder: Folders, picture_folder: Folders) -> None:
    learner = create(tmp_path / "state")
    with pytest.raises(ConfigError, match="has learned nothing yet"):
        learner.predict([np.zeros((28, 28, 3), np.uint8)])
    learner.learn(mask_folder(["road", "car"], 4, name="first"), training=FAST)
    before = all_bytes(tmp_path / "state")
    known = mask_folder(["road"], 4, name="known")
    small = with_small(mask_folder(["tree"], 4, name="small"))
    refused: list[tuple[Callable[[], object], type[Exception], str]] = [
        (
            lambda: learner.learn(picture_folder(["ant"], 2)),
            DataError,
            "learns segmentation, but these data are for classification; name another state",
        ),
        (lambda: learner.evaluate(tmp_path / "pictures"), DataError, "learns segmentation"),
        (
            lambda: learner.learn(mask_folder({"ghost": 0, "road": 4}, 4, name="ghost")),
            DataError,
            "no mask holds a pixel of the new classes 'ghost'",
        ),
        (lambda: learner.learn(overwrite(known, 0)), DataError, "no mask holds a pixel of any class"),
        (lambda: learner.learn(overwrite(known, 255)), DataError, "no mask holds a pixel of any class"),
        (lambda: learner.learn(mask_folder(["Road"], 2, name="case")), DataError, "Road"),
        (lambda: learner.learn(small), DataError, r"small\.png \(is 40 x 13 pixels, smaller than a patch \(14 x 14\)"),
        (lambda: learner.evaluate(small), DataError, "smaller than a patch"),
        (lambda: learner.predict(small / "images"), DataError, r"small\.png: is 40 x 13 pixels, smaller than a patch"),
        (
            lambda: learner.evaluate(mask_folder(["bike"], 2, name="bikes")),
            DataError,
            "none of the classes in the masks to measure on is known: 'bike'; known: background, road, car",
        ),
        (lambda: learner.predict([]), DataError, "no pictures"),
    ]
    for call, error, message in refused:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert all_bytes(tmp_path / "state") == before
    learner.learn(small, skip_bad=True)
    assert learner.record["tasks"][-1]["images"] == 4
    assert len(learner.predict(small / "images", skip_bad=True)) == 4


def test_masks_are_not_for_a_state_that_names_pictures(
    tmp_path: Path, mask_folder: Folders, picture_folder: Folders
) -> None:
    learner = Learner.create(tmp_path / "state", backbone=TINY, method="ncm", image_size=28)
    learner.learn(picture_folder(["ant", "bee"], 2), training=FAST)
    with pytest.raises(DataError, match="learns classification, but these data are for segmentation"):
        learner.learn(mask_folder(["road"], 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (30, 42)}, "must be a multiple of .* patch of 14 px, got 30x42; try 28x42"),
        ({"head": "linear"}, "head 'linear' is for classification, not for segmentation. Heads for it: dense"),
        ({"method": "ranpac"}, "method 'ranpac' is not for segmentation: its head ridge is not"),
        ({"settings": {"head": {"decoder": "conv5x5"}}}, "one of none, conv1x1, conv3x3"),
        ({"settings": {"adapter": {"rank": 0}}}, "adapter.rank must be >= 1"),
    ],
)
def test_creating_with_a_fault_makes_nothing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        create(tmp_path / "state", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "state").exists()


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_a_person_is_told_what_the_grid_cannot_show(tmp_path: Path, mask_folder: Folders) -> None:
    folder = mask_folder(["road", "pole"], 4)
    for path in (folder / "masks").iterdir():
        values = np.asarray(Image.open(path)).copy()
        values[values == 2] = 0
        values[3:5, 3:6] = 2  # six pixels of a patch's 196
        Image.fromarray(values).save(path)
    notes = Notes()
    create(tmp_path / "state").learn(folder, training=FAST, progress=notes)
    (line,) = (line for line in notes.lines if "too coarse" in line)
    assert "pole (0%)" in line
    assert "road" not in line
    assert line.startswith("at 28x42 px")
