"""Rows at work: so many runs at once, each finished row on disk, and nothing lost when it is stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sapwood.backbones import plan_backbone
from sapwood.bench.budget import chosen_epochs
from sapwood.bench.engines.base import TAKEN, UNSEEN, End, Engine, Job
from sapwood.bench.plan import Plan
from sapwood.bench.sharing import TRAINED, order_of_work
from sapwood.data.streams import Stream
from sapwood.errors import ConfigError, DataError, Interrupted, UsageError
from sapwood.progress import Progress
from sapwood.state.files import put
from sapwood.training import stop_on_signals

_POLL = 0.2  # seconds between two looks at the runs
_FINAL = (UsageError.exit_code, TAKEN, UNSEEN)
"""Exit codes that come again however often a row is tried."""
_REQUEST, _CLAIMING, _HELD = "bench.json", "bench.lock", "bench.running.lock"


def work(
    plan: Plan,
    out: Path,
    engine: Engine,
    progress: Progress,
    retries: int = 0,
    finished: Callable[[Mapping[str, Any]], object] | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run all rows that are not there yet.

    Rows lie in ``out/rows``, one JSON file each, with a log beside it. A row that was cut short goes on where it
    stopped; several benches may share a folder. Until all rows are there ``out/trained`` holds what rows share that
    differ in their heads alone.

    Args:
        plan: what is run.
        out: folder of the bench; every machine of the engine writes there.
        engine: runs the rows; it is opened if a row is missing, and closed.
        progress: listens.
        retries: how often a row that failed is tried again, from its last checkpoint; not where the user has to mend
            something.
        finished: called with each row that ends well, as it ends.

    Returns:
        All rows of the folder, those of the plan first; and a line for each that failed, the others were run all the
        same.

    Raises:
        ConfigError: the folder holds rows of another benchmark or of other settings, the budget is too small, or the
            engine cannot run them.
        DataError: the pictures are not there, or are not those that rows of the folder come from.
        Interrupted: a stop was asked for; the rows in work have written a checkpoint.
    """
    folder, rows = out / "rows", plan.rows()
    names = list(rows)
    order = order_of_work({name: row.run for name, row in rows.items()}, plan.kind)
    waiting = [name for name in order if not (folder / f"{name}.json").exists()]
    if waiting and plan.image_size is not None:
        plan_backbone(plan.backbone, plan.image_size)  # a size that does not fit is found now
    stream = plan.stream(0)  # missing data are found now
    if waiting:
        _check_pictures(stream, folder)
    try:
        if waiting:
            engine.open()
        epochs: dict[str, int] = {}
        if plan.budget_gmacs is not None:  # first: a folder whose budget is too small could not be used with another
            fixed = any(folder.glob("*.json"))
            epochs = chosen_epochs(plan, {name: rows[name] for name in waiting}, progress, fixed=fixed)
        with _claimed(plan, out) as alone:
            folder.mkdir(exist_ok=True)
            if waiting:
                engine.check(folder)
            progress.start("rows", len(names), len(names) - len(waiting))
            specs = {name: _spec(plan, name, folder, engine, epochs) for name in waiting}
            failed = _run(specs, folder, engine, retries, progress, finished)
        if alone and not failed:  # another bench may go on with them
            shutil.rmtree(out / TRAINED, ignore_errors=True)
    finally:
        engine.close()
    there = [name for name in names if (folder / f"{name}.json").exists()]
    there += sorted(file.stem for file in folder.glob("*.json") if file.stem not in names)
    return [json.loads((folder / f"{name}.json").read_text("utf-8")) for name in there], failed


def _run(
    specs: Mapping[str, dict[str, Any]],
    folder: Path,
    engine: Engine,
    retries: int,
    progress: Progress,
    finished: Callable[[Mapping[str, Any]], object] | None,
) -> list[str]:
    """Run rows by name, so many at once as the engine takes; a line for each that failed."""
    waiting, running = list(specs), dict[str, Job]()
    tries, failed = Counter[str](), list[str]()
    with stop_on_signals() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < engine.jobs and not stop.requested:
                    name = waiting.pop(0)
                    running[name] = engine.start(specs[name], folder / f"{name}.log")
                    tries[name] += 1
                time.sleep(_POLL)
                for name, job in list(running.items()):
                    end = job.poll()
                    if end is None:
                        continue
                    del running[name]
                    fault = _fault(name, end, folder)
                    if fault is None:
                        row = json.loads((folder / f"{name}.json").read_text("utf-8"))
                        progress.note(f"{name}: {_result(row)}")
                        if finished is not None:
                            finished(row)
                    elif tries[name] <= retries and end.code not in _FINAL:
                        progress.note(f"{fault}; trying again ({tries[name]} of {retries})")
                        waiting.insert(0, name)
                        continue
                    else:
                        failed.append(fault)
                    progress.advance(1)
                if stop.requested:
                    _end(running)
        finally:
            for job in running.values():
                job.kill()
    progress.finish()
    return failed


def _check_pictures(stream: Stream, folder: Path) -> None:
    """See that the rows that are there come from the pictures that are there."""
    files = sorted(folder.glob("*.json"))
    now = stream.pictures_sha256() if files else None
    for file in files:
        if json.loads(file.read_text("utf-8")).get("pictures_sha256", now) != now:
            raise DataError(
                f"{file} comes from other pictures than {stream.name} has now; name another --out for these"
            )


@contextmanager
def _claimed(plan: Plan, out: Path) -> Iterator[bool]:
    """Claim the folder, and hold it: while this bench has no row yet, none of other settings claims it.

    Gives whether no other bench held it.
    """
    _make(out)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(out / _HELD, timeout=0))
            alone = True
        except Timeout:
            alone = False
        _claim(plan, out, alone=alone)
        yield alone


def _make(out: Path) -> None:
    try:
        foreign = not any((out / name).exists() for name in (_REQUEST, _CLAIMING))
        if out.is_dir() and foreign and any(out.iterdir()):
            raise ConfigError(f"--out {out} holds other things; name a folder that is new, empty or a bench's")
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--out {out} is a file; name a folder") from None
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made ({error.strerror}); name another folder") from error


def _claim(plan: Plan, out: Path, *, alone: bool) -> None:
    """Remember what the folder is for, or see that it is for this; ``alone``: no other bench is at work in it."""
    wanted, file = plan.fingerprint(), out / _REQUEST
    with FileLock(out / _CLAIMING):
        begun = any(any((out / "rows").glob(each)) for each in ("*.json", "*.work"))
        if not file.exists() and begun:
            raise ConfigError(f"{file} is gone, which says what the rows beside it are; name another --out")
        if not begun and (alone or not file.exists()):
            put(file, json.dumps(wanted, indent=1) + "\n")
            return
        has = json.loads(file.read_text("utf-8"))
    with suppress(ConfigError):  # as they are meant: an earlier release wrote them as they were given
        has |= {"settings": replace(plan, settings=has.get("settings", {})).fingerprint()["settings"]}
    faults = [f"{key}={has.get(key)}, not {value}" for key, value in wanted.items() if has.get(key) != value]
    if faults:
        raise ConfigError(f"--out {out} holds rows of {'; '.join(faults)}; name another folder")


def _spec(plan: Plan, name: str, folder: Path, engine: Engine, epochs: Mapping[str, int]) -> dict[str, Any]:
    """What ``sapwood.bench.worker`` takes."""
    how = {"jobs": engine.jobs, "alone": engine.alone, "epochs": epochs.get(name)}
    return {"plan": asdict(plan), "row": name, "out": str(folder / f"{name}.json"), **how}


def _end(running: dict[str, Job]) -> None:
    """Ask the rows to stop, wait until they have written their checkpoints, and say so."""
    for job in running.values():
        job.stop()
    for job in running.values():
        job.wait()
    running.clear()
    raise Interrupted("stopped; finished rows are kept, the same command goes on with the others")


def _fault(name: str, end: End, folder: Path) -> str | None:
    """What went wrong with a row that has ended."""
    log = folder / f"{name}.log"
    if end.code == TAKEN:
        return f"row {name} is being run by another process"
    if end.code == UNSEEN:
        return f"row {name} failed: it was sent to a machine that does not see {folder}"
    if end.code == 0:
        gone = not (folder / f"{name}.json").exists()
        return f"row {name} is done, but its file is not to be seen here yet" if gone else None
    if end.reason or end.code < 0:
        return f"row {name} failed: {end.reason or f'killed by signal {-end.code}'} (see {log})"
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else f"exit code {end.code}"
    return f"row {name} failed: {last} (see {log})"


def _result(row: Mapping[str, Any]) -> str:
    return f"{100 * (row['last_accuracy'] or 0):.1f} % after {row['train_seconds']:.0f} s of training"
