"""From a learner to the data of its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sapwood.data.legend import BACKGROUND
from sapwood.data.masks import MaskedPictures
from sapwood.progress import Progress
from sapwood.record import compares, measured_pictures
from sapwood.report.content import ReportData
from sapwood.report.history import read_history
from sapwood.report.routes import read_routes
from sapwood.report.samples import draw_samples, name_samples, read_samples

if TYPE_CHECKING:
    from sapwood.learner import Learner


def gather(
    learner: Learner,
    data: Any = None,
    *,
    samples: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> ReportData:
    """What the current version has to report.

    Args:
        learner: open on the version that is reported.
        data: labelled pictures (class folder, CSV, ...) or pictures with masks, from which ``samples`` are shown with
            their predictions; None: no pictures, since the state keeps none.
        samples: how many, the same ones every time; by default 24, spread over the classes, and of masks 12.
        skip_bad: leave unreadable pictures out, else they are an error.
        progress: listens to what happens.

    Raises:
        UsageError: the data cannot be read, or are not of the kind that the learner learns.
    """
    version = learner.state.version
    record = version.record
    masks = record["kind"] == "segmentation"
    measured = record["tasks"][-1].get("measured", {}) if record["tasks"] else {}
    found = read_history(record)
    shown: dict[str, Any] = {}
    if data is not None:
        pictures = read_samples(learner, data)
        rest = (samples, skip_bad, progress or Progress())
        if isinstance(pictures, MaskedPictures):
            shown["masks"] = draw_samples(learner, pictures, *rest)
        else:
            shown["samples"] = name_samples(learner, pictures, *rest)
    return ReportData(
        title=learner.state.path.resolve().name,
        version=version.id,
        method=record["method"],
        backbone=record["backbone"]["name"],
        created=record["created"].replace("T", " ").replace("+00:00", " UTC"),
        classes=tuple(name for name in learner.classes_ if not (masks and name == BACKGROUND)),
        tasks=found.tasks,
        measure=found.measure,
        accuracy=found.accuracy,
        numbers=found.numbers,
        remark=found.remark,
        breaks=found.breaks,
        after_each=found.after_each,
        **_classes(record),
        means=_means(measured),
        **shown,
        routes=read_routes(learner.state),
        costs=found.costs,
        settings=_settings(record),
    )


def _classes(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of single classes after the last round, and after the nearest round before it.

    Of rounds that were measured on other pictures (given, or kept by the state) nothing can be compared.
    """
    rounds = list(zip(record["tasks"], record["accuracy_on"], strict=True))
    if not rounds or not (measured := rounds[-1][0].get("measured", {})).get("per_class"):
        return {}
    found = {"per_class": measured["per_class"], "counts": measured.get("counts", {})}
    found["counted"] = "pixels" if record["kind"] == "segmentation" else "pictures"
    names = measured_pictures(record)
    for after, (task, source) in reversed(list(enumerate(rounds[:-1]))):
        same = source == rounds[-1][1] and all(compares(names, after, on) for on in range(after + 1))
        if same and (before := task.get("measured", {})).get("per_class"):
            earlier = {"before": before["per_class"], "counts_before": before.get("counts", {})}
            return {**found, **earlier, "before_round": task["name"]}
    return found


def _means(measured: Mapping[str, Any]) -> dict[str, float | None]:
    names = {"miou": "all, with the background", "old": "first round", "new": "later rounds", "background": BACKGROUND}
    return {name: measured[key] for key, name in names.items() if key in measured}


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    parts = record["parts"]
    sides = record["image_size"]
    side = "x".join(map(str, sides)) if isinstance(sides, list) else sides
    settings: dict[str, Any] = {"image_size": side, "seed": record["seed"]}
    for part, values in record["settings"].items():
        if part in parts:
            settings[part] = parts[part]
        settings |= {f"{part}.{key}": value for key, value in values.items()}
    return settings
