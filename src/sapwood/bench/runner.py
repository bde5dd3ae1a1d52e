"""One method through one stream: learned round by round, measured after each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapwood.assembly import new_record
from sapwood.backbones import create_backbone
from sapwood.backbones.lending import LentOnce
from sapwood.bench.origins import code_of
from sapwood.bench.outcomes import false_accept, outcomes
from sapwood.bench.rows import Course, Run, new_classes, row_of
from sapwood.bench.sharing import Sharing
from sapwood.bench.summary import overall
from sapwood.data.streams import MaskStream, Stream
from sapwood.errors import ConfigError
from sapwood.kinds import KINDS
from sapwood.learner import Learner
from sapwood.methods import find_method
from sapwood.progress import Progress
from sapwood.state import State

Memory = dict[str, Tensor]


def run(
    stream: Stream,
    wanted: Run,
    out: Path,
    *,
    progress: Progress | None = None,
    memory: Memory | None = None,
    marks: Mapping[str, Any] | None = None,
    trained: Path | None = None,
) -> dict[str, Any]:
    """Learn the stream round by round and write ``out``; a run that was cut short goes on where it stopped.

    The test pictures of all classes so far are measured after each round; they choose nothing. A method that needs all
    data is trained anew on the union of the rounds so far, after each round, in ``joint_epochs``.

    Args:
        stream: rounds with test pictures.
        wanted: method, backbone, seed and settings.
        out: JSON file, written atomically at the end; if it is there, it is read instead of learning again.
        progress: listens to what happens.
        memory: features of pictures, shared by runs over the same ones.
        marks: more entries of the row; ``timing_valid`` counts only for a row that was not cut short.
        trained: folder of what runs share that differ in their heads alone: trainings, features. None shares none.

    Returns:
        The row: measures as fractions, costs, and everything that reproduces it.

    Raises:
        ConfigError: ``out`` is the row of another run.
    """
    work = out.with_suffix(".work")
    if out.exists():
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed after it wrote the row
        row = dict(json.loads(out.read_text("utf-8")))
        if row["run"] != json.loads(json.dumps(asdict(wanted))):
            raise ConfigError(f"{out} is the row of another run; remove it, or name another file")
        return row
    method = find_method(wanted.method, wanted.head, stream.kind)
    code = code_of(method, wanted.backbone)
    earlier = _claim(work, {"run": asdict(wanted), "data": stream.sha256()}, code)
    progress = progress or Progress()
    sharing = None if trained is None else Sharing(trained, stream, wanted, work)
    if sharing is not None and memory is not None:
        sharing.recall(memory)
    if method.all_data:
        course = _jointly(stream, wanted, work, progress, memory)
    else:
        course = _in_sequence(stream, wanted, work, progress, memory, sharing)
    found = outcomes(course.learner, stream.tests(len(stream.rounds) - 1), out, progress)
    if sharing is not None and memory is not None:
        sharing.keep(memory)
    took_over = sharing is not None and sharing.took_over
    resumed = earlier is not None
    row = {**row_of(stream, wanted, course), **found, **(marks or {}), "resumed": resumed, "took_over": took_over}
    row["earlier_code"] = [each for each in earlier or () if each != code]
    # What was done between the last checkpoint and the stop is not in the seconds.
    row["timing_valid"] = row.get("timing_valid", True) and not resumed and not took_over
    if took_over:
        row["peak_memory"] = None  # of steps that this process has not made
    _write(out, row)
    shutil.rmtree(work)
    return row


def _claim(work: Path, wanted: dict[str, Any], code: dict[str, str]) -> list[dict[str, str]] | None:
    """Make the work folder, or go on in it if it is of the same run and data: then the code that has worked in it."""
    file, wanted = work / "run.json", json.loads(json.dumps(wanted))
    has = json.loads(file.read_text("utf-8")) if file.exists() else {}
    earlier = has.pop("code", [])
    if work.exists() and has != wanted:
        shutil.rmtree(work)
    begun = not work.exists()
    if begun:
        earlier = []
    work.mkdir(parents=True, exist_ok=True)
    _write(file, wanted | {"code": earlier if code in earlier else [*earlier, code]})
    return None if begun else earlier


def open_learner(path: Path, kind: str, wanted: Run, memory: Memory | None) -> Learner:
    """The state of a run, made if it is not there; the backbone, method and settings are the run's."""
    if State.exists(path):
        return Learner(State.open(path), memory=memory)
    method = replace(find_method(wanted.method, wanted.head, kind), all_data=False)
    backbone = create_backbone(wanted.backbone, wanted.image_size)
    size = KINDS[kind].view_size(wanted.image_size, backbone.info)
    record = new_record(backbone, method, size, wanted.seed, wanted.settings)
    return Learner(State.create(path, record), memory=memory, lend=LentOnce(backbone))


def _in_sequence(
    stream: Stream, wanted: Run, work: Path, progress: Progress, memory: Memory | None, sharing: Sharing | None
) -> Course:
    learner = open_learner(work / "state", stream.kind, wanted, memory)
    count, done = len(stream.rounds), len(learner.record["tasks"])
    if done:
        _measure_beside(learner, stream, work, done - 1)  # it may have been killed between a round and its measure
    for index in range(done, count):
        part = stream.rounds[index]
        if sharing is not None:
            sharing.join(learner, index)
        learner.learn(part.train, task=part.name, test=stream.tests(index), relearn=True, progress=progress)
        _measure_beside(learner, stream, work, index)
    tasks = learner.record["tasks"]
    beside = [json.loads(_cells_file(work, index).read_text("utf-8")) for index in range(count)]
    accuracy = [each["cells"] for each in beside] if stream.domains else learner.accuracy_
    accepted = [each["false_accept"] for each in beside]
    return Course(learner, accuracy, [task["measured"] for task in tasks], tasks, accepted)


def _measure_beside(learner: Learner, stream: Stream, work: Path, index: int) -> None:
    """What is measured after a round and not kept in the state."""
    file = _cells_file(work, index)
    if not file.exists():
        cells = _domain_cells(learner, stream, index) if stream.domains else None
        _write(file, {"cells": cells, "false_accept": false_accept(learner, stream)})


def _domain_cells(learner: Learner, stream: Stream, upto: int) -> list[float | None]:
    """The headline on each round's own test pictures: classes do not tell domains apart."""
    cells = []
    for part in stream.rounds[: upto + 1]:
        confusion = torch.tensor(learner.evaluate(part.test).confusion)
        summary = learner.kind.summary(confusion, learner.classes_, learner.record["tasks"])
        cells.append(overall(summary, stream.background) if isinstance(stream, MaskStream) else summary["accuracy"])
    return cells


def _cells_file(work: Path, index: int) -> Path:
    return work / f"cells-{index + 1}.json"


def _write(file: Path, content: Any) -> None:
    """Replace a JSON file atomically."""
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    os.replace(aside, file)


def joint_epochs(stream: Stream, upto: int, epochs: int) -> int:
    """Epochs over the union of rounds that show as many pictures as ``epochs`` over each of them, and never more.

    Rounds of masks that overlap show a picture again and again; joint would take a fraction of their steps.

    Args:
        stream: of rounds.
        upto: position of the last round; 0 is the first.
        epochs: of each round.
    """
    shown = sum(len(part.train) for part in stream.rounds[: upto + 1])
    return epochs * shown // len(stream.joint(upto))


def _jointly(stream: Stream, wanted: Run, work: Path, progress: Progress, memory: Memory | None) -> Course:
    """The course of a method that is trained anew on everything so far."""
    accuracy: list[list[float | None]] = []
    summaries: list[dict[str, Any]] = []
    accepted: list[float | None] = []
    last = len(stream.rounds) - 1
    for index in range(last + 1):
        if wanted.joint_at_end and index < last:
            accuracy.append([None] * (index + 1))
            summaries.append({})
            accepted.append(None)
            continue
        learner = open_learner(work / f"upto-{index + 1}", stream.kind, wanted, memory)
        tests = stream.tests(index)
        if not learner.record["tasks"]:
            epochs = joint_epochs(stream, index, learner.record["settings"]["training"]["epochs"])
            learner.learn(stream.joint(index), task="joint", test=tests, training={"epochs": epochs}, progress=progress)
        # The rounds as the stream cuts them, which this state has not seen as such.
        cut = [{"classes": names, "annotated": names} for names in new_classes(stream)[: index + 1]]
        confusion = torch.tensor(learner.evaluate(tests).confusion)
        if stream.domains:
            accuracy.append(_domain_cells(learner, stream, index))
        else:
            accuracy.append(learner.kind.cells(confusion, learner.classes_, cut))
        summaries.append(learner.kind.summary(confusion, learner.classes_, cut))
        accepted.append(false_accept(learner, stream))
    # The last training alone is what the bound costs; the earlier ones only measure it on fewer rounds.
    return Course(learner, accuracy, summaries, learner.record["tasks"], accepted)
