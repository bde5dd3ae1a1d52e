"""Benches in real processes: killed, stopped, gone on with, and refused with one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from forking import fork_command
from row_processes import Rows

from sapwood.bench.plan import Plan

from .helpers import OFTEN, SLOW, TINY, Result, newest, rows_in, wait_for

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


@pytest.fixture
def undisturbed(bench: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench of one slow row from its beginning to its end, made once."""
    folder = tmp_path_factory.getbasetemp() / "undisturbed-bench"
    if not folder.exists():
        assert bench(folder, *SLOW, *OFTEN).code == 0
    return folder


def test_a_bench_that_was_cut_short_gives_the_same_rows(
    own: str, bench: Callable[..., Result], undisturbed: Path, tmp_path: Path
) -> None:
    """Asked to stop in one round, killed in the next look at it, and gone on with."""
    broken = tmp_path / "broken"
    checkpoints = broken / "rows/seq-lora-random-seed0.work/state/training"
    for number, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)):
        before = newest(checkpoints)
        with (tmp_path / "said").open("wb") as errors:
            process = fork_command("bench", own, "--out", broken, *TINY, *SLOW, *OFTEN, stderr=errors.fileno())
        wait_for(lambda before=before, process=process: newest(checkpoints) > before or process.poll() is not None)
        assert process.poll() is None, "it ended before that"
        process.send_signal(number)  # to the bench alone, which passes it on, or is gone
        ended, said = process.wait(), (tmp_path / "said").read_text()
        assert ended == code, said
        assert rows_in(broken) == {}
        if number == signal.SIGTERM:
            last = "error: stopped; finished rows are kept, the same command goes on with the others"
            assert said.splitlines()[-1] == last
    assert bench(broken, *SLOW, *OFTEN).code == 0
    assert rows_in(broken) == rows_in(undisturbed) != {}
    for out, whole in ((undisturbed, True), (broken, False)):
        (row,) = json.loads((out / "results.json").read_text())
        assert (row["timing_valid"], row["resumed"]) == (whole, not whole)


def test_rows_are_not_run_twice_and_more_may_join(
    bench: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = ("--seeds", "1", "--epochs", "1")
    assert bench(out, "--methods", "ncm", *options).code == 0
    assert {"ncm-random-seed0", "joint-random-seed0"} == rows_in(out).keys()
    times = {file: file.stat().st_mtime_ns for file in (out / "rows").glob("*.json")}
    second = bench(out, "--methods", "ncm,seq-lora+ridge,ncm/cosine", "--jobs", "2", "--json", *options)
    assert second.code == 0
    assert all(file.stat().st_mtime_ns == when for file, when in times.items())
    results = json.loads(second.out)["results"]
    assert [row["method"] for row in results] == ["ncm", "seq-lora+ridge", "ncm/cosine", "joint"]
    assert [row["timing_valid"] for row in results] == [True, False, False, True]
    assert [row["control"] for row in results] == [False, False, False, True]
    written = {"results.json", "table.md", "table.tex", "table.csv", "report.html"}
    assert written <= {file.name for file in out.iterdir()}
    assert json.loads((out / "results.json").read_text()) == results
    assert results[-1]["intransigence"] == 0
    for row in results:
        assert row["gmacs"] > 0
        assert row["state_bytes"] > 0
        assert row["rounds"] == [["ant", "bee"], ["cat", "dog"]]
    trained = {row["method"]: row["train_gmacs"] for row in results}
    assert trained["ncm"] == pytest.approx(48 * results[0]["gmacs"], rel=0.01)  # a pass over the pictures
    # Forward, gradients of inputs and a little for the factors, of every picture: 12 of 15 a class, 1 of them held out.
    forward = results[1]["gmacs"]
    assert 1.3 * 44 * forward < trained["seq-lora+ridge"] < 3.5 * 48 * forward

    monkeypatch.setattr("sapwood.bench.pool.plan_backbone", None)  # nothing is left to run, so nothing is opened
    third = bench(out, "--methods", "ncm/cosine", "--no-controls", "--json", *options)
    assert [row["method"] for row in json.loads(third.out)["results"]] == [
        "ncm/cosine",
        "joint",
        "ncm",
        "seq-lora+ridge",
    ]

    other = bench(out, "--methods", "ncm", "--seeds", "1", "--epochs", "2")
    assert other.code == 2
    (line,) = other.err.splitlines()
    assert line.startswith(f"error: --out {out} holds rows of settings=")
    assert line.endswith("; name another folder")


def test_a_row_that_fails_leaves_the_others(bench: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    wild = ("--lr", "1e30", "--set", "training.optimizer=sgd", "--set", "training.warmup=0", "--epochs", "9")
    done = bench(out, "--methods", "seq-lora,ncm", "--no-controls", "--seeds", "1", *wild)
    assert done.code == 1
    log = out / "rows/seq-lora-random-seed0.log"
    line = done.err.splitlines()[-1]
    assert line.startswith("error: row seq-lora-random-seed0 failed: the loss became ")
    assert line.endswith(f" (see {log}); the same command tries again")
    assert rows_in(out).keys() == {"ncm-random-seed0"}
    assert "| ncm " in (out / "table.md").read_text()


def test_what_failed_is_tried_again(
    own: str, bench: Callable[..., Result], undisturbed: Path, forked_rows: Rows, tmp_path: Path
) -> None:
    """From its checkpoint; a row that the user has to mend is not."""
    out = tmp_path / "out"

    def kill_one() -> None:
        wait_for(lambda: newest(out / "rows/seq-lora-random-seed0.work/state/training"))
        psutil.Process(forked_rows.begun[-1].pid).kill()

    with ThreadPoolExecutor() as threads:
        killing = threads.submit(kill_one)
        done = bench(out, *SLOW, *OFTEN, "--retries", "1")
    killing.result()
    assert done.code == 0
    again = "row seq-lora-random-seed0 failed: killed by signal 9"
    (line,) = (line for line in done.err.splitlines() if line.startswith(again))
    assert line.endswith("; trying again (1 of 1)")
    assert rows_in(out) == rows_in(undisturbed)

    wild = (*SLOW, "--lr", "1e30", "--set", "training.optimizer=sgd", "--set", "training.warmup=0")
    done = bench(tmp_path / "wild", *wild, "--retries", "2")
    assert done.code == 1
    assert [number for number in "123" if f"; trying again ({number} of 2)" in done.err] == ["1", "2"]
    spoiled = shutil.copytree(Path(own.split(":")[1]), tmp_path / "spoiled")
    (spoiled / "ant/0.png").write_bytes(b"no picture")
    done = bench(tmp_path / "mend", *SLOW, "--retries", "2", benchmark=f"own:{spoiled}:2")
    assert done.code == 1
    assert "trying again" not in done.err
    assert "0.png" in done.err.splitlines()[-1]


def test_random_weights_stand_beside_pretrained_ones() -> None:
    plan = Plan("split-animals-5x2", ("c-lora", "seq-lora"), seeds=2, image_size=28)
    assert list(plan.rows())[:5] == [
        "c-lora-pretrained-seed0",
        "seq-lora-pretrained-seed0",
        "ncm-pretrained-seed0",
        "c-lora-random-seed0",
        "joint-pretrained-seed0",
    ]
    assert len(plan.rows()) == 10


@pytest.mark.parametrize(
    ("benchmark", "more", "told"),
    [
        ("own", ("--methods", "seq-lorra"), "no method 'seq-lorra'. Did you mean 'seq-lora'?"),
        ("own", ("--methods", "ncm/coffee"), "no head 'coffee'"),
        ("own", ("--methods", "ncm", "--seeds", "0"), "--seeds must be >= 1, got 0"),
        ("own", ("--methods", ","), "--methods names no method"),
        ("own", ("--methods", "ncm", "--tasks", "9"), "4 classes"),
        ("own", ("--methods", "ncm", "--jobs", "0"), "--jobs must be >= 1, got 0"),
        ("own", ("--methods", "ncm", "--retries", "-1"), "--retries must be >= 0, got -1"),
        (
            "own",
            ("--methods", "ncm", "--engine", "rai"),
            "no engine 'rai'. Did you mean 'ray'? Known engines: process, ",
        ),
        ("own", ("--methods", "ncm", "--address", "auto"), "--address is not for --engine process"),
        ("own", ("--methods", "ncm", "--set", "training.epoch=1"), "no setting 'training.epoch'"),
        ("own", ("--methods", "clora+mib"), "is not for classification"),
        (
            "own",
            ("--methods", "ncm", "--class-order", "backwards"),
            "--class-order must be a number below 4294967296, ",
        ),
        ("own", ("--methods", "ncm", "--class-order", "99999999999"), "natural or seed, got '99999999999'"),
        ("own", ("--methods", "ncm, seq-lorra"), "no method 'seq-lorra'"),
        ("split-cifar9", ("--methods", "ncm"), "no benchmark 'split-cifar9'"),
        ("split-cifar10-5x2", ("--methods", "ncm", "--data", "nowhere"), "train.npz and test.npz"),
    ],
)
def test_bad_input_is_one_line(
    bench: Callable[..., Result], benchmark: str, more: Sequence[str], told: str, tmp_path: Path
) -> None:
    named = {} if benchmark == "own" else {"benchmark": benchmark}
    done = bench(tmp_path / "out", *more, **named)
    (line,) = done.err.splitlines()
    assert done.code == 2
    assert told in line
    assert not (tmp_path / "out" / "rows").exists()


def test_a_method_of_another_package_is_benched(own: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/quiet.py").write_text(
        "from sapwood.methods import Method\n"
        "from sapwood.heads.cosine import CosineHead\n"
        "class Quiet(CosineHead): pass\n"
        'METHOD = Method("quiet", "lora", "finetune", "quiet", "seq-lora with a cosine head")\n'
    )
    info = tmp_path / "elsewhere/quiet-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quiet\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sapwood.methods]\nquiet = quiet:METHOD\n[sapwood.heads]\nquiet = quiet:Quiet\n"
    )
    out = tmp_path / "out"
    options = ("--methods", "quiet", "--seeds", "1", "--epochs", "1", "--no-controls", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "sapwood", "bench", own, "--out", str(out), *TINY, *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "elsewhere"), *filter(None, sys.path)])},
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["results"]
    assert (row["method"], row["parts"]["head"], row["libraries"]["quiet"]) == ("quiet", "quiet", "1.0")
    assert list(row["code"]) == ["sapwood", "quiet"]


def test_what_could_not_be_a_bench_leaves_nothing(bench: Callable[..., Result], tmp_path: Path) -> None:
    """A size that does not fit is said at once, and a folder in which nothing was learned may be used with another."""
    options = ("--methods", "ncm", "--seeds", "1", "--no-controls")
    out = tmp_path / "out"
    refused = bench(out, *options, "--image-size", "30")
    assert refused.code == 2
    assert "30" in refused.err.splitlines()[-1]
    assert not out.exists()
    out.mkdir()
    (out / "bench.json").write_text('{"image_size": 80}')
    assert bench(out, *options).code == 0
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "bee.jpg").write_bytes(b"")
    refused = bench(photos, *options)
    assert (refused.code, list(photos.iterdir())) == (2, [photos / "bee.jpg"])
    assert f"--out {photos} holds other things; name a folder that is new, empty or a bench's" in refused.err
