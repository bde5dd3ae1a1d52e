"""A state whose writers are killed at random moments while others predict from it.

    python benchmarks/interruptions.py [--json] [--count 200] [--readers 20] [--seed 0]

Real commands (learn, undo, rollback, prune, classes remove) run in processes of their own and are stopped after a
random time by SIGKILL or SIGTERM, or meet a full disk or a read-only folder. After each, the state must open, be the
version before or the one after, hold every file of every version that it lists, and predict what that version predicted
before. Meanwhile readers open the state and predict, over and over; none may see an error or an answer that is not the
version's.

The full disk is a small file system in memory where mounting is permitted (there it is also made read-only), else a
limit on the size of files. Any violation ends the run with exit code 1 and the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401
import numpy as np
from PIL import Image
from small_disk import SmallDisk

from sapwood.backbones import create_backbone
from sapwood.cli import main as sapwood
from sapwood.learner import Learner
from sapwood.state import State, Version

CLASSES, PICTURES, SIDE = 8, 4, 28
BACKBONE = "random:dinov2-tiny"
NEW = ["--backbone", BACKBONE, "--image-size", str(SIDE), "--method", "seq-lora", "--workers", "0"]
TRAINING = ["--epochs", "2", "--batch-size", "2", "--set", "training.checkpoint_seconds=0.001", "--device", "cpu"]
WEIGHTS = {"learn": 5, "undo": 2, "rollback": 3, "prune": 3, "classes": 2}
WAYS = ("SIGKILL", "SIGTERM", "full disk", "read-only")
PAUSE = 0.5
"""Seconds between two looks of a reader."""

Answers = list[tuple[str, float]]


class Violation(Exception):
    """What must never happen."""


def draw(folder: Path, seed: int) -> list[Path]:
    """One class folder of noisy one-coloured pictures a round; returns the rounds."""
    noise = np.random.default_rng(seed)
    rounds = []
    for index in range(CLASSES):
        place = folder / f"round-{index}" / f"colour-{index}"
        place.mkdir(parents=True)
        colour = noise.uniform(0, 180, 3)
        for number in range(PICTURES):
            pixels = colour + noise.uniform(0, 70, (SIDE, SIDE, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
        rounds.append(place.parent)
    return rounds


def begin(line: list[str], log: Path, largest: int | None = None) -> int:
    """Run a command in a process of its own; returns its id."""
    child = os.fork()
    if child:
        return child
    code: Any = 70
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with open(log, "wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        sapwood(line)
    except SystemExit as ended:
        code = ended.code
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(int(code or 0))


def predict(learner: Learner, pictures: list[Path]) -> Answers:
    """Label and score of each picture."""
    return [(answer.label, round(answer.score, 4)) for answer in learner.predict(pictures)]


def read(state: Path, pictures: list[Path], stop: Path, log: Path) -> int:
    """A reader: what each version answers goes to its log, and so does an error; returns its process id."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(log, "w") as stream:
        while not stop.exists() and os.getppid() == parent:
            try:
                learner = Learner.open(state, device="cpu")
                answers = predict(learner, pictures)
                print(json.dumps([learner.state.version.id, answers]), file=stream, flush=True)
            except BaseException as error:
                print(json.dumps([f"{type(error).__name__}: {error}"]), file=stream, flush=True)
            time.sleep(PAUSE)
    os._exit(0)


class Trial:
    """A state, what its versions must answer, and what has been done to it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.disk = SmallDisk(folder / "disk")
        self.state, self.log = self.disk.folder / "model", folder / "log"
        self.rounds = draw(folder / "pictures", seed)
        self.pictures = [each / f"colour-{index}" / "0.png" for index, each in enumerate(self.rounds[:3])]
        self.records: dict[str, Any] = {}
        self.answers: dict[str, Answers] = {}
        self.by_content: dict[str, Answers] = {}
        self.longest: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    def prepare(self) -> None:
        """Run each command undisturbed, to learn how long it takes."""
        create_backbone(BACKBONE, SIDE)  # what its first use imports: else every process would, before its real work
        Image.init()  # and what the first picture does
        gc.collect()
        gc.freeze()  # collecting garbage would copy every page that the processes share
        self.undisturbed(["learn", str(self.state), str(self.rounds[0]), *NEW, *TRAINING])
        self.undisturbed(self.learn())
        self.undisturbed(self.learn())
        self.undisturbed(["rollback", str(self.state), "--to", "v2"])
        self.undisturbed(["undo", str(self.state)])
        self.undisturbed(self.remove("colour-1"))
        self.undisturbed(["prune", str(self.state), "--keep", "4"])
        self.check(None)

    def undisturbed(self, line: list[str]) -> None:
        """Run a command to its end and remember how long it took."""
        began = time.monotonic()
        code = os.waitstatus_to_exitcode(os.waitpid(begin(line, self.log), 0)[1])
        if code:
            raise Violation(f"{line[0]} undisturbed: exit code {code}, {self.log.read_text()}")
        self.longest[line[0]] = max(self.longest.get(line[0], 0.0), time.monotonic() - began)

    def learn(self) -> list[str]:
        """The round of the first class that is not known, so that one that was stopped goes on."""
        known = [entry["name"] for entry in State.open(self.state).version.record["classes"]]
        index = next(index for index in range(CLASSES) if f"colour-{index}" not in known)
        return ["learn", str(self.state), str(self.rounds[index]), *TRAINING]

    def remove(self, name: str) -> list[str]:
        """Forget a class."""
        return ["classes", str(self.state), "remove", name, "--inexact"]

    def choose(self) -> list[str]:
        """A random command that makes sense now, and leaves a state that has learned something."""
        state = State.open(self.state)
        versions = {version.id: version for version in state.versions()}
        earlier = [each.id for each in versions.values() if each.record["tasks"] and each.id != state.version.id]
        parent = versions.get(state.version.record["parent"])
        names = [entry["name"] for entry in state.version.record["classes"]]
        lines: dict[str, list[str]] = {}
        if len(names) < CLASSES:
            lines["learn"] = self.learn()
        if parent is not None and parent.record["tasks"]:
            lines["undo"] = ["undo", str(self.state)]
        if earlier:
            lines["rollback"] = ["rollback", str(self.state), "--to", self.random.choice(earlier)]
        if len(versions) > 3:
            keep = self.random.randint(2, len(versions) - 1)
            lines["prune"] = ["prune", str(self.state), "--keep", str(keep)]
        if len(names) > 2:
            lines["classes"] = self.remove(self.random.choice(names))
        actions = list(lines)
        return lines[self.random.choices(actions, [WEIGHTS[action] for action in actions])[0]]

    def interrupt(self) -> None:
        """One command, one interruption, and what must hold afterwards."""
        line, way = self.choose(), self.random.choices(WAYS, (4, 3, 2, 1 if self.disk.mounted else 0))[0]
        state = State.open(self.state)
        before, half = state.version, state.training.half_learned(state.version.record["tasks"])
        free = self.random.randrange(0, 30) * 4096
        with contextlib.ExitStack() as stack:
            if way == "full disk":
                stack.enter_context(self.disk.full(free))
            elif way == "read-only":
                stack.enter_context(self.disk.read_only())
            limit = free + 4096 if way == "full disk" and not self.disk.mounted else None
            child = begin(line, self.log, limit)
            if way.startswith("SIG"):
                time.sleep(self.random.uniform(0, 1.1 * self.longest[line[0]]))
                os.kill(child, getattr(signal, way))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = self.log.read_text(errors="replace")
        allowed = {"SIGKILL": (-signal.SIGKILL,), "SIGTERM": (-signal.SIGTERM, 130)}.get(way, (1,))
        if code not in (0, *allowed) or "Traceback" in said or "bug" in said:
            raise Violation(f"{line[0]}, {way}: exit code {code}, {said}")
        after = self.check(before)
        self.counts[way] += 1
        self.counts[line[0]] += 1
        self.counts["finished"] += code == 0
        self.counts["went on"] += after.id != before.id
        stays = line[0] == "prune" or (line[0] == "undo" and half is not None)  # which it drops, and nothing else
        if code == 0 and not stays and after.id == before.id:
            raise Violation(f"{line[0]} said it was done, but the state is still {before.id}; {said}")

    def check(self, before: Version | None) -> Version:
        """The state opens, is the version before or the next, is whole, and answers as that version does."""
        state = State.open(self.state)
        current, versions = state.version, state.versions()
        if before is not None and before.id not in (current.id, current.record["previous"]):
            raise Violation(f"{current.id} does not follow {before.id}")
        if versions[-1].id != current.id:
            raise Violation(f"{versions[-1].id} is listed last, {current.id} is current")
        for version in versions:
            if self.records.setdefault(version.id, version.record) != version.record:
                raise Violation(f"{version.id} has changed")
            if lost := [name for name in version.record["files"] if not (self.state / name).is_file()]:
                raise Violation(f"{version.id} has lost {lost[0]}")
        answers = predict(Learner(state, "cpu"), self.pictures)
        content = json.dumps([current.record["files"], current.record["classes"]])
        if self.by_content.setdefault(content, answers) != answers:
            raise Violation(f"{current.id} answers {answers}, before {self.by_content[content]}")
        self.answers[current.id] = answers
        return current

    def compare(self, logs: list[Path]) -> int:
        """The number of answers that readers got, all of them right."""
        count = 0
        for log in logs:
            for text in log.read_text().splitlines():
                version, *answers = json.loads(text)
                if not answers:
                    raise Violation(f"a reader met {version}")
                if [tuple(answer) for answer in answers[0]] != self.answers.get(version):
                    raise Violation(f"a reader got {answers[0]} of {version}, expected {self.answers.get(version)}")
                count += 1
        return count


def run(folder: Path, count: int, readers: int, seed: int) -> dict[str, Any]:
    """All of it; raises Violation."""
    began = time.monotonic()
    trial, stop = Trial(folder, seed), folder / "stop"
    logs = [folder / f"reader-{number}" for number in range(readers)]
    children: list[int] = []
    try:
        trial.prepare()
        children = [read(trial.state, trial.pictures, stop, log) for log in logs]
        for _ in range(count):
            trial.interrupt()
    finally:
        stop.touch()
        for child in children:
            os.waitpid(child, 0)
        trial.disk.close()
    return {
        "interruptions": count,
        "seed": seed,
        "by": dict(sorted(trial.counts.items())),
        "full_disk": "file system" if trial.disk.mounted else "file size limit",
        "readers": readers,
        "answers": trial.compare(logs),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays mounted
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = run(Path(folder), options.count, options.readers, options.seed)
        except Violation as violation:
            sys.exit(f"seed {options.seed}: {violation}")
    if options.json:
        print(json.dumps(result))
    else:
        whom = f"{result['answers']} answers to {result['readers']} readers"
        print(f"{result['interruptions']} interruptions, {whom}, no fault, {result['seconds']} s")
        print(", ".join(f"{name}: {number}" for name, number in result["by"].items()))


if __name__ == "__main__":
    main()
