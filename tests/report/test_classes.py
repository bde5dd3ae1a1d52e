"""What the report says of single classes, and what the last round did to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.learner import Learner
from sapwood.repair import rename_class
from sapwood.report import gather, render
from sapwood.report.content import ReportData, ReportTask

from .helpers import Page

TINY = {"backbone": "random:dinov2-tiny", "method": "ncm", "image_size": 28}
Folders = Callable[..., Path]


@pytest.fixture
def learner(tmp_path: Path, picture_folder: Folders) -> Learner:
    """Two rounds; the second's class looks like one of the first, which loses by it."""
    rival = picture_folder({"ant": 12}, name="rival", seed=9)
    (rival / "ant").rename(rival / "<aunt>")
    test = picture_folder({"ant": 8, "bee": 6}, name="test", seed=1)
    learner = Learner.create(tmp_path / "state", **TINY)
    learner.learn(picture_folder(["ant", "bee"], 12, name="first"), task="one", test=test)
    return learner.learn(rival, task="two", test=test)


def row_of(page: Page, name: str, following: int) -> list[str]:
    """The cells of a class's row in the table."""
    start = page.texts.index(name, page.texts.index("class"))
    return page.texts[start : start + following]


def test_the_change_of_a_class_stands_beside_its_counts(learner: Learner, tmp_path: Path) -> None:
    test = tmp_path / "test"
    measured = learner.evaluate(test)
    report = gather(learner)
    assert report.counts == report.counts_before == {"ant": 8, "bee": 6}
    assert report.before == {"ant": 1.0, "bee": 1.0}
    assert report.per_class == measured.per_class
    assert report.before_round == "one"
    right = {name: measured.confusion[index][index] for index, name in enumerate(measured.classes)}
    assert right["ant"] < 8  # else there would be nothing to show
    page = Page(render(report))
    share = 100 * right["ant"] / 8
    assert row_of(page, "ant", 6)[1:] == [
        "1",
        "one",
        f"{share:.1f}",
        "100.0",
        f"−{100 - share:.1f}",
    ]
    assert f"{right['ant']} of 8 (before: 8 of 8)" in page.texts
    assert "pictures right" in page.texts
    assert page.find("strong", **{"class": "lost"})
    told = f"Of 2 classes measured after round 'one' too, {sum(right[n] < c for n, c in report.counts.items())} lost"
    assert any(line.startswith(told) and f"'ant' most, by {100 - share:.1f} points" in line for line in page.texts)


def test_a_new_name_keeps_the_numbers(learner: Learner) -> None:
    before = gather(learner)
    rename_class(learner.state, "ant", "formica")
    after = gather(Learner.open(learner.state.path))
    for field in ("per_class", "counts", "before", "counts_before"):
        one, other = getattr(before, field), getattr(after, field)
        assert {("formica" if name == "ant" else name): value for name, value in one.items()} == other


def test_a_round_measured_on_nothing_or_on_other_pictures_is_not_compared(
    learner: Learner, tmp_path: Path, picture_folder: Folders
) -> None:
    third = picture_folder({"cow": 12}, name="third")
    learner.learn(third, task="three")
    assert gather(learner).per_class == {}
    assert "of each class" not in render(gather(learner))
    learner.evaluate(tmp_path / "test", record=True)
    report = gather(learner)
    assert report.before_round == "two"
    assert report.before.keys() == {"ant", "bee"}
    learner.learn(picture_folder({"dog": 12}, name="fourth"), task="four", keep_probe=2)
    report = gather(learner)
    assert report.counts == {"dog": 2}
    assert not report.before  # the state's own pictures against given ones
    assert report.tasks[3].measured_on == "probe"
    assert "pictures that the state keeps" in render(report)
    assert "dog" in " ".join(Page(render(report)).texts)


def test_classes_that_were_not_there_before_and_pixels() -> None:
    report = ReportData(
        title="t",
        version="v",
        method="m",
        backbone="b",
        created="now",
        classes=("road", "<car>", "tree"),
        tasks=(ReportTask("one", ("road", "<car>"), 1, None, 1, 1), ReportTask("two", ("tree",), 1, None, 1, 1)),
        measure="mean IoU",
        accuracy=((0.5,), (0.4, 0.3)),
        per_class={"road": 0.55, "<car>": None, "tree": 0.3},
        counts={"road": 12345, "tree": 7},
        counted="pixels",
        before={"road": 0.5, "<car>": 0.25},
        counts_before={"road": 12300, "<car>": 5},
        before_round="one",
    )
    page = Page(render(report))
    assert {"pixels measured", "+5.0", "new", "12,345 (before: 12,300)"} <= set(page.texts)
    note = next(line for line in page.texts if line.startswith("Of "))
    assert note == (
        "Of 1 class measured after round 'one' too, none has lost anything since. "
        "Where the counts differ, other pictures were measured."
    )
