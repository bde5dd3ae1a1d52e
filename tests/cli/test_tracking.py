"""``--track``: what TensorBoard reads of a round and of a bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from sapwood.cli import tracking
from sapwood.cli.tracking import follower, track_rows
from sapwood.progress import Progress
from sapwood.state import State

from .conftest import TINY, Run, World

event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    found = event_files.EventAccumulator(str(run)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_round_is_a_run(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    state = tmp_path / "model"
    options = (*TINY, "--method", "seq-lora", "--epochs", "2", "--track", "tensorboard")
    done = sapwood("learn", state, read_only_world.first, *options, "--test", read_only_world.first)
    assert done.code == 0, done.err
    assert f"runs for tensorboard lie in {state}-tensorboard" in done.err
    opened = State.open(state)
    record = opened.version.record
    (run,) = (each for each in (tmp_path / "model-tensorboard").iterdir() if each.is_dir())
    assert run.name == Path(record["tasks"][0]["folder"]).name
    read = scalars(run)
    log = [json.loads(line) for line in opened.text(f"{record['tasks'][0]['folder']}/log.jsonl").splitlines()]
    assert [step for step, _ in read["loss"]] == [1, 2]
    assert [value for _, value in read["loss"]] == pytest.approx([entry["loss"] for entry in log])
    assert read[f"accuracy/{record['tasks'][0]['name']}"] == [(1, pytest.approx(record["accuracy"][0][0]))]
    (written,) = run.rglob("hparams.yml")
    assert f"adapter.rank: {record['settings']['adapter']['rank']}\n" in written.read_text()


ROW = {
    "benchmark": "own", "measure": "accuracy",
    "method": "ncm/cosine", "backbone": "b", "weights": "random", "seed": 3, "image_size": 28,
    "rounds": [["a"], ["b"]], "after_each": [{"accuracy": 0.75, "per_class": {"a": 1.0}}, {"accuracy": 0.5}],
    "accuracy": [[0.75, None], [0.25, 0.5]], "settings": {"training": {"epochs": 2, "head_lr": None}},
    "last_accuracy": 0.5, "average_incremental_accuracy": None, "forgetting": 0.5, "train_seconds": 1.5,
    "train_gmacs": 2.5, "peak_memory": 1000, "trainable_parameters": 10,
}  # fmt: skip


def test_a_row_is_a_run(tmp_path: Path) -> None:
    for _ in range(2):  # a row that is there is not written again
        assert track_rows("tensorboard", [ROW], tmp_path) == tmp_path / "tensorboard"
    read = scalars(tmp_path / "tensorboard" / "ncm@cosine-random-seed3")
    assert read["accuracy"] == [(1, 0.75), (2, 0.5)]
    assert read["accuracy/round 1"] == [(1, 0.75), (2, 0.25)]
    assert read["accuracy/round 2"] == [(2, 0.5)]
    assert read["train_gmacs"] == [(2, 2.5)]
    assert "average_incremental_accuracy" not in read


def test_a_run_is_written_again_after_a_kill_and_when_the_row_is_measured_anew(tmp_path: Path) -> None:
    run = tmp_path / "tensorboard" / "ncm@cosine-random-seed3"
    run.mkdir(parents=True)  # of a process that was killed
    track_rows("tensorboard", [ROW], tmp_path)
    assert scalars(run)["accuracy"] == [(1, 0.75), (2, 0.5)]
    track_rows("tensorboard", [{**ROW, "last_accuracy": 0.25}], tmp_path)
    assert scalars(run)["last_accuracy"] == [(2, 0.25)]
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    track_rows("tensorboard", [{**ROW, "last_accuracy": 0.25}], tmp_path)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_benches_of_one_name_share_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store := f"sqlite:///{tmp_path / 'store.db'}")
    for place, score in (("a", 0.1), ("b", 0.9)):
        track_rows("mlflow", [{**ROW, "last_accuracy": score}], tmp_path / place / "it's")
    client = mlflow.MlflowClient(store)
    (experiment,) = (each for each in client.search_experiments() if each.name == "it_s")
    found = [run.data.metrics["last_accuracy"] for run in client.search_runs([experiment.experiment_id])]
    assert sorted(found) == [0.1, 0.9]


def test_mlflow_holds_what_a_row_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written to the file of a database, and read back by MLflow's own client."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    row = {**ROW, "rounds": [["Sky", "Road"], ["b"]], "measure": "IoU"}
    for _ in range(2):  # a row that is there is not written again
        folder = track_rows("mlflow", [row], tmp_path)
    assert (folder / "mlflow.db").is_file()
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string=f"name = '{tmp_path.name}'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "ncm/cosine-random-seed3".replace("/", "@")
    assert run.info.status == "FINISHED"
    assert run.data.params["training.epochs"] == "2"
    assert run.data.metrics["last_accuracy"] == 0.5
    cells = client.get_metric_history(run.info.run_id, "IoU/round 1")
    assert [(cell.step, cell.value) for cell in cells] == [(1, 0.75), (2, 0.25)]


def test_mlflow_writes_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store := f"sqlite:///{tmp_path / 'elsewhere.db'}")
    tracking._choose_store(tmp_path / "runs")
    assert mlflow.get_tracking_uri() == store


@pytest.mark.parametrize("command", ["learn", "bench"])
def test_a_tracker_that_is_not_there(
    sapwood: Run, tmp_path: Path, read_only_world: World, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    first = read_only_world.first
    given = ("learn", tmp_path / "model", first, *TINY)
    if command == "bench":
        given = ("bench", f"own:{first}:2", "--methods", "ncm", "--out", tmp_path / "model")
    done = sapwood(*given, "--track", "notebook")
    assert (done.code, done.err) == (2, "error: --track must be tensorboard or mlflow or wandb, got 'notebook'\n")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    done = sapwood(*given, "--track", "tensorboard")
    assert done.code == 2
    assert (
        done.err
        == "error: --track tensorboard: tensorboard is not installed; run: pip install 'sapwood[tensorboard]'\n"
    )
    assert not (tmp_path / "model").exists()


def test_rows_are_followed_as_they_end_and_a_tracker_that_fails_stops_none(tmp_path: Path) -> None:
    class Heard(Progress):
        said: ClassVar[list[str]] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    write = follower("tensorboard", tmp_path, Heard())
    write(ROW)
    assert scalars(tmp_path / "tensorboard" / "ncm@cosine-random-seed3")["accuracy"] == [(1, 0.75), (2, 0.5)]
    assert not Heard.said
    write({**ROW, "seed": 4, "rounds": None})
    (line,) = Heard.said
    assert line.endswith("; it is tried again when all rows are there")
