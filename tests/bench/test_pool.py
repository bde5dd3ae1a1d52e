"""Benches in real processes: killed, stopped, gone on with, and refused with one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

TINY = ("--backbone", "random:dinov2-tiny", "--image-size", "28", "--precision", "fp32", "--class-order", "natural")
VARYING = {"train_seconds", "milliseconds_per_image", "peak_memory"}


@pytest.fixture
def own(picture_folder: Callable[..., Path]) -> str:
    """A benchmark of four classes in two tasks."""
    folder = picture_folder(dict.fromkeys(("ant", "bee", "cat", "dog"), 15), name="animals")
    return f"own:{folder}:2"


def command(benchmark: str, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "sapwood", "bench", benchmark, "--out", str(out), *TINY, *more]


def bench(benchmark: str, out: Path, *more: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(benchmark, out, *more), capture_output=True, text=True, timeout=300, env=os.environ | (env or {})
    )


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """By file name, without what differs from run to run."""
    found = {}
    for file in sorted((out / "rows").glob("*.json")):
        row = {key: value for key, value in json.loads(file.read_text()).items() if key not in VARYING}
        found[file.stem] = row
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended before that"
        assert time.monotonic() < limit
        time.sleep(0.05)


SLOW = ("--methods", "seq-lora", "--no-controls", "--seeds", "1", "--epochs", "60", "--set", "training.batch_size=2")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_bench_that_was_cut_short_gives_the_same_rows(own: str, tmp_path: Path, number: int) -> None:
    options = (*SLOW, "--set", "training.checkpoint_seconds=0.2")
    whole = bench(own, tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        command(own, broken, *options), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    work = broken / "rows/seq-lora-random-seed0.work"
    wait_for(lambda: any((work / "training").glob("*.safetensors")), process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    assert rows(broken) == {}
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == (
            "error: stopped; finished rows are kept, the same command goes on with the others"
        )
    again = bench(own, broken, *options)
    assert again.returncode == 0, again.stderr
    assert rows(broken) == rows(tmp_path / "whole") != {}


def test_rows_are_not_run_twice_and_more_may_join(own: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--seeds", "1", "--epochs", "1")
    first = bench(own, out, "--methods", "ncm", *options)
    assert first.returncode == 0, first.stderr
    assert {"ncm-random-seed0", "joint-random-seed0"} == rows(out).keys()
    times = {file: file.stat().st_mtime_ns for file in (out / "rows").glob("*.json")}
    second = bench(own, out, "--methods", "ncm,seq-lora+ridge,ncm/cosine", "--jobs", "2", "--json", *options)
    assert second.returncode == 0, second.stderr
    assert all(file.stat().st_mtime_ns == when for file, when in times.items())
    results = json.loads(second.stdout)["results"]
    assert [row["method"] for row in results] == ["ncm", "seq-lora+ridge", "ncm/cosine", "joint"]
    assert [row["timing_valid"] for row in results] == [True, False, False, True]
    assert [row["control"] for row in results] == [False, False, False, True]
    assert {"results.json", "table.md", "table.tex", "table.csv", "report.html"} <= {
        file.name for file in out.iterdir()
    }
    assert json.loads((out / "results.json").read_text()) == results
    assert results[-1]["intransigence"] == 0
    for row in results:
        assert row["gmacs"] > 0
        assert row["state_bytes"] > 0
        assert row["rounds"] == [["ant", "bee"], ["cat", "dog"]]
    trained = {row["method"]: row["train_gmacs"] for row in results}
    assert trained["ncm"] == 0
    # forward, gradients of inputs and a little for the factors, of every training picture (12 of 15 a class, 1 held)
    forward = results[1]["gmacs"]
    assert 1.3 * 44 * forward < trained["seq-lora+ridge"] < 3.5 * 48 * forward

    other = bench(own, out, "--methods", "ncm", "--seeds", "1", "--epochs", "2")
    assert other.returncode == 2
    (line,) = other.stderr.splitlines()
    assert line.startswith(f"error: --out {out} holds rows of settings=")
    assert line.endswith("; name another folder")


def test_random_weights_stand_beside_pretrained_ones() -> None:
    from sapwood.bench.plan import Plan

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
        ("own", ("--methods", "ncm", "--set", "training.epoch=1"), "no setting 'training.epoch'"),
        ("own", ("--methods", "clora+mib"), "is not for classification"),
        ("own", ("--methods", "ncm", "--class-order", "backwards"), "--class-order must be a number, natural or seed"),
        ("split-cifar9", ("--methods", "ncm"), "no benchmark 'split-cifar9'"),
        ("split-cifar10-5x2", ("--methods", "ncm", "--data", "nowhere"), "train.npz and test.npz"),
    ],
)
def test_bad_input_is_one_line(
    own: str, benchmark: str, more: Sequence[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sapwood.cli import main

    name = own if benchmark == "own" else benchmark
    with pytest.raises(SystemExit) as ended:
        main(["bench", name, "--out", str(tmp_path / "out"), *TINY, *more])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert told in line
    assert not (tmp_path / "out" / "rows").exists()


def test_a_method_of_another_package_is_benched(own: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/quiet.py").write_text(
        "from sapwood.methods import Method\n"
        'METHOD = Method("quiet", "lora", "finetune", "cosine", "seq-lora with a cosine head")\n'
    )
    info = tmp_path / "elsewhere/quiet-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quiet\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sapwood.methods]\nquiet = quiet:METHOD\n")
    path = os.pathsep.join([str(tmp_path / "elsewhere"), *sys.path])
    done = bench(
        own, tmp_path / "out", "--methods", "quiet", "--seeds", "1", "--epochs", "1", "--no-controls", "--json",
        env={"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["results"]
    assert (row["method"], row["parts"]["head"]) == ("quiet", "cosine")
