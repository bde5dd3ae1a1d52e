"""What was learned, for a tracker of experiments: one run a round of ``learn``, one a row of ``bench``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapwood.errors import ConfigError
from sapwood.record import of_json_lines

if TYPE_CHECKING:
    from sapwood.progress import Progress
    from sapwood.state import State

TRACKERS = ("tensorboard", "mlflow", "wandb")
_STORE = "mlflow.db"
Track = Annotated[
    str | None,
    typer.Option(metavar="|".join(TRACKERS), help="Write settings and what was measured for this tracker, as it ends."),
]

Steps = Iterable[tuple[int, Mapping[str, Any]]]


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is not known or not installed, before anything is learned."""
    if name is None:
        return
    if name not in TRACKERS:
        raise ConfigError(f"--track must be {' or '.join(TRACKERS)}, got {name!r}")
    if find_spec(name) is None:
        raise ConfigError(f"--track {name}: {name} is not installed; run: pip install 'sapwood[{name}]'")


def track_round(name: str, state: State) -> Path:
    """Write the last round of a state: loss and validation of each epoch, then its row of the accuracy matrix.

    Returns:
        The folder beside the state's that has a run for each round.
    """
    record = state.version.record
    task, count = record["tasks"][-1], len(record["tasks"])
    folder = state.path.with_name(f"{state.path.name}-{name}")
    log = of_json_lines(state.text(f"{task['folder']}/log.jsonl"))
    epochs: list[tuple[int, Mapping[str, Any]]] = [
        (entry["epoch"] + 1, {"loss": entry["loss"], "validation": entry.get("validation_accuracy")}) for entry in log
    ]
    last = [(max(1, len(log)), {"validation": task["validation_accuracy"]})]
    measure = "IoU" if record["kind"] == "segmentation" else "accuracy"
    cells = [(count, _cells(measure, [task["name"] for task in record["tasks"]], record["accuracy"][-1]))]
    facts = {key: record[key] for key in ("method", "seed", "image_size")} | {"backbone": record["backbone"]["name"]}
    run = Path(task["folder"]).name
    _write(name, folder, state.path.name, run, {**facts, **record["settings"]}, [*epochs, *last, *cells])
    return folder


def track_rows(name: str, rows: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Write a bench's rows that were not written as they are: the settings, and the measures after each round.

    Returns:
        The folder below ``out`` that has a run for each row.
    """
    folder = out / name
    for row in rows:
        run = f"{row['method'].replace('/', '@')}-{row['weights']}-seed{row['seed']}"
        names = [f"round {number}" for number in range(1, len(row["rounds"]) + 1)]
        steps = [
            (index, {**after, **_cells(row["measure"], names, cells)})
            for index, (after, cells) in enumerate(zip(row["after_each"], row["accuracy"], strict=True), 1)
        ]
        whole = {key: row[key] for key in ("last_accuracy", "average_incremental_accuracy", "forgetting")}
        costs = {key: row[key] for key in ("train_seconds", "train_gmacs", "peak_memory", "trainable_parameters")}
        facts = {key: row[key] for key in ("benchmark", "method", "backbone", "seed", "image_size")}
        measured = [*steps, (len(names), {**whole, **costs})]
        _write(name, folder, out.resolve().name, run, {**facts, **row["settings"]}, measured)
    return folder


def follower(name: str, out: Path, progress: Progress) -> Callable[[Mapping[str, Any]], None]:
    """What writes each row of a bench as it ends; a tracker that fails does not stop the others."""

    def write(row: Mapping[str, Any]) -> None:
        try:
            track_rows(name, [row], out)
        except Exception as error:  # whatever a tracker raises
            reason = (str(error) or type(error).__name__).splitlines()[0]
            progress.note(f"{name}: {reason}; it is tried again when all rows are there")

    return write


def _cells(measure: str, names: Sequence[str], cells: Sequence[float | None]) -> dict[str, Any]:
    return {f"{measure}/{name}": cell for name, cell in zip(names, cells, strict=False)}


def _write(name: str, folder: Path, project: str, run: str, settings: Mapping[str, Any], steps: Steps) -> None:
    """One run, by accelerate's tracker of that name; what was not measured is left out."""
    from accelerate import Accelerator

    steps = [(step, dict(values)) for step, values in steps]
    mark = folder / f".{run}.written"  # made when all is written, of what was
    content = hashlib.sha256(json.dumps([settings, steps], sort_keys=True).encode()).hexdigest()
    if mark.exists() and mark.read_text("ascii") == content:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if name == "mlflow":
        _choose_store(folder)
    if name == "tensorboard":
        shutil.rmtree(folder / run, ignore_errors=True)  # of a process that was killed, or of what is measured anew
    options: dict[str, dict[str, Any]] = {
        "mlflow": {"run_name": run, "logging_dir": str(folder / "artifacts")},
        "wandb": {"name": run, "dir": str(folder), "settings": {"silent": True}},
    }
    accelerator = Accelerator(mixed_precision="no", device_placement=False, log_with=name, project_dir=folder)
    # TensorBoard takes a project for a folder of its own; the others sort runs of their own names into one project,
    # which accelerate looks for by a filter that ends at a quotation mark.
    accelerator.init_trackers(run if name == "tensorboard" else project.replace("'", "_"), _flat(settings), options)
    for step, values in steps:
        numbers = {_plain(key): value for key, value in values.items() if isinstance(value, int | float)}
        if numbers:
            accelerator.log(numbers, step=step)
    accelerator.end_training()
    mark.write_text(content, "ascii")


def _choose_store(folder: Path) -> None:
    """MLflow writes where the person's own variable says, else into a file of the folder."""
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / _STORE).resolve()}")


def _plain(key: str) -> str:
    """A measure's name without what MLflow refuses in one.

    >>> _plain("IoU/Sky+Road")
    'IoU/Sky_Road'
    """
    return re.sub(r"[^/\w.\- :]", "_", key)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name; what no tracker takes as it is, as text.

    >>> _flat({"adapter": {"rank": 8, "targets": ["q", "v"]}, "seed": 0})
    {'adapter.rank': 8, 'adapter.targets': "['q', 'v']", 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": entry for inner, entry in _flat(value).items()}
        else:
            found[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
