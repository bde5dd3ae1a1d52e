"""The learner on masks: rounds whose pictures hold more than they label."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.cli.showing import summary
from sapwood.export import export
from sapwood.learner import Learner
from sapwood.mask_evaluation import MaskOptions
from sapwood.report.history import read_history

from .helpers import FAST, Folders, create, equal, masks, same, tensors


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
    counts = summary.pop("counts")
    assert summary == {key: getattr(measured, key) for key in ("miou", "old", "new", "background", "per_class")}
    assert counts == {"background": 1764, "road": 1764, "tree": 1176}  # pixels of four masks of 28 x 42
    without.evaluate(test, record=True)
    assert without.accuracy_[1] == learner.accuracy_[1]


def test_a_test_picture_that_was_learned_is_noticed_under_any_mask(tmp_path: Path, mask_folder: Folders) -> None:
    first = mask_folder(["road", "car"], 6, name="first")
    test = mask_folder(["road", "car"], 3, name="test", seed=9)
    shutil.copy(first / "images" / "000.png", test / "images" / "001.png")
    learner = create(tmp_path / "state")
    (remark,) = learner.announce(first, test=test).remarks
    assert remark == "1 of the test pictures are among the training pictures: they measure too much"
    learner.learn(first, training=FAST)
    assert learner.evaluate(test).learned_images == 1
    said = learner.announce(mask_folder(["tree"], 4, name="second"), test=test).remarks
    assert "1 of the test pictures were learned in earlier rounds: they measure too much" in said
    shutil.copy(test / "images" / "002.png", test / "images" / "001.png")
    assert learner.evaluate(test).learned_images == 0


def test_a_round_without_new_classes_has_no_column(tmp_path: Path, mask_folder: Folders) -> None:
    learner = create(tmp_path / "state", "frozen+mib")
    learner.learn(mask_folder(["road", "car"], 6, name="town"), training=FAST)
    learner.learn(mask_folder(["road", "car"], 6, name="dusk", seed=2), training=FAST, test=tmp_path / "town")
    text = summary(learner.state.version)
    heads, *rows = text[text.index("mean IoU, %") :].splitlines()
    assert heads.split() == ["mean", "IoU,", "%", "task-1"]
    assert rows[-1].split() == ["after", "task-2", f"{100 * learner.accuracy_[1][0]:.1f}"]
    export(learner.state.path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| after task-2 | {100 * learner.accuracy_[1][0]:.1f} | test pictures |" in card


def test_what_is_counted_is_part_of_what_a_cell_is_measured_on(tmp_path: Path, mask_folder: Folders) -> None:
    test = mask_folder(["road", "car", "tree"], 4, name="test", seed=9)
    learner = create(tmp_path / "state", "frozen+mib")
    learner.learn(mask_folder(["road", "car"], 6, name="town"), training=FAST, test=test)
    learner.learn(mask_folder(["tree"], 6, name="park", seed=2), training=FAST, test=test)

    def comparable() -> bool:
        found = read_history(learner.record)
        assert (found.numbers["forgetting"] is None) == bool(found.remark.endswith("compared: task-1."))
        return found.numbers["forgetting"] is not None

    assert comparable()
    for options in (MaskOptions(crop=True), MaskOptions(tile=True), MaskOptions(future="background")):
        learner.evaluate(test, record=True, options=options)
        assert not comparable(), options
    learner.evaluate(test, record=True, options=MaskOptions(background="exclude"))
    assert comparable(), "which means are taken changes no cell"
    legend = json.loads((test / "classes.json").read_text())
    (test / "classes.json").write_text(json.dumps({**legend, "road": legend["tree"], "tree": legend["road"]}))
    learner.evaluate(test, record=True)
    assert not comparable()


def test_validation_without_a_pixel_of_the_rounds_classes_measures_nothing(
    tmp_path: Path, mask_folder: Folders
) -> None:
    learner = create(tmp_path / "state").learn(mask_folder({"road": 1}, 12), training=FAST)
    accuracy = learner.record["tasks"][0]["validation_accuracy"]
    assert accuracy is None or 0 <= accuracy <= 1
    json.dumps({"accuracy": learner.accuracy_, "tasks": learner.record["tasks"]}, allow_nan=False)
    for row in learner.state.text(f"{learner.record['tasks'][0]['folder']}/log.jsonl").splitlines():
        json.dumps(json.loads(row), allow_nan=False)


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
