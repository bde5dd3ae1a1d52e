"""Benches on a real Ray cluster of this machine: the files of the other engine, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from sapwood.bench.engines import nodes
from sapwood.bench.engines import ray as engine

from .helpers import OFTEN, SLOW, TINY, Result, newest, rows_in, wait_for

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra: ray)"),
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes by their arguments"),
]

TWO = ("--methods", "seq-lora,ncm", "--no-controls", "--seeds", "1", "--epochs", "12", "--batch-size", "2")
CLUSTER = """
import ray, sys
ray.init("local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, logging_level=40)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two cores that is there already; its processes find the sources."""
    path = os.pathsep.join([str(Path(engine.__file__).parents[3]), *filter(None, sys.path)])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (engine.OWN | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": path}).items():
            patch.setenv(name, value)
        with subprocess.Popen(
            [sys.executable, "-c", CLUSTER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as cluster:
            assert cluster.stdout is not None
            yield cluster.stdout.readline().strip()
            assert cluster.stdin is not None
            cluster.stdin.close()


def row_process(file: Path) -> psutil.Process:
    """The one that works on a row."""
    for process in psutil.process_iter():
        try:
            given = process.cmdline()
        except psutil.Error:
            continue
        if "sapwood.bench.worker" in given and str(file) in given[-1]:
            return process
    raise AssertionError(f"nobody works on {file}")


@pytest.mark.slow
def test_a_killed_run_is_tried_again_and_the_files_are_those_of_the_other_engine(
    bench: Callable[..., Result], address: str, tmp_path: Path
) -> None:
    """Killed is the process of Ray that watches over the row; the row sees that and gives way to the next try."""
    out, ended = tmp_path / "ray", threading.Event()

    def kill() -> None:
        file = out / "rows/seq-lora-random-seed0.json"
        wait_for(lambda: newest(file.with_suffix(".work") / "state/training") or ended.is_set())
        psutil.Process(row_process(file).ppid()).kill()

    with ThreadPoolExecutor() as threads:
        killing = threads.submit(kill)
        done = bench(out, *TWO, *OFTEN, "--engine", "ray", "--address", address, "--retries", "1")
        ended.set()
    assert done.code == 0, done.err
    killing.result()
    (again,) = (line for line in done.err.splitlines() if line.endswith("; trying again (1 of 1)"))
    assert again.startswith("row seq-lora-random-seed0 failed: ")
    assert bench(tmp_path / "process", *TWO, *OFTEN, "--jobs", "2").code == 0
    assert rows_in(out) == rows_in(tmp_path / "process")
    ours, others = ({file.name for file in (each / "rows").iterdir()} for each in (out, tmp_path / "process"))
    assert ours == others
    for row in json.loads((out / "results.json").read_text()):
        assert (row["jobs"], row["timing_valid"], row["resumed"]) == (2, False, row["method"] == "seq-lora")

    times = {file: file.stat().st_mtime_ns for file in (out / "rows").iterdir()}
    nobody = bench(out, *TWO, *OFTEN, "--engine", "ray", "--address", "127.0.0.1:1")
    assert nobody.code == 0, "nothing is left to do, so nobody is asked"
    assert {file: file.stat().st_mtime_ns for file in (out / "rows").iterdir()} == times


def test_what_a_cluster_cannot_do_is_refused(
    address: str, command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ("--methods", "ncm", "--engine", "ray", "--address", address)
    done = command(tmp_path / "out", *there, "--cpus-per-run", "64")
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith(
        "error: --cpus-per-run 64 with --gpus-per-run 0 fits no machine of the cluster; the largest "
    )
    assert line.endswith(" has 2 CPUs and 0 GPUs")
    assert not (tmp_path / "out").exists()
    # A path that means another folder in each process, as a folder that is not shared does on each machine.
    monkeypatch.chdir(tmp_path)
    done = command(Path("/proc/self/cwd/out"), *there)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: --out /proc/self/cwd/out cannot be written on ")
    assert line.endswith(" of the cluster; name a folder that all its machines share under the same path")
    assert list((tmp_path / "out/rows").iterdir()) == []


@pytest.mark.parametrize(("backlog", "told"), [(None, "Connection refused"), (1, "no answer within 2 seconds")])
def test_an_address_where_no_cluster_answers(
    backlog: int | None, told: str, command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens, or somebody who says nothing."""
    monkeypatch.setattr(nodes, "_ANSWERING", 2.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if backlog is not None:
            other.listen(backlog)
        address = f"127.0.0.1:{other.getsockname()[1]}"
        begun = time.monotonic()
        done = command(tmp_path / "out", "--methods", "ncm", "--engine", "ray", "--address", address)
    assert time.monotonic() - begun < 10
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: --address {address}: no Ray cluster that could be joined ({told}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--address", "here"), "--address must be HOST:PORT or auto, got 'here'"),
        (("--cpus-per-run", "0"), "--cpus-per-run must be >= 1, got 0"),
        (("--gpus-per-run", "1.5"), "--gpus-per-run must be a whole number or between 0 and 1, got 1.5"),
        (("--gpus-per-run", "inf"), "--gpus-per-run must be a whole number or between 0 and 1, got inf"),
    ],
)
def test_bad_options_are_one_line(
    more: tuple[str, ...], told: str, command: Callable[..., Result], tmp_path: Path
) -> None:
    done = command(tmp_path / "out", "--methods", "ncm", "--engine", "ray", *more)
    assert (done.code, done.err.splitlines()) == (2, [f"error: {told}"])


def test_ray_that_is_not_installed(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    done = command(tmp_path / "out", "--methods", "ncm", "--engine", "ray")
    told = "error: --engine ray: ray is not installed; run: pip install 'sapwood[ray]'"
    assert (done.code, done.err.splitlines()) == (2, [told])


@pytest.mark.slow
def test_a_cluster_of_its_own_ends_with_the_bench(own: str, tmp_path: Path) -> None:
    """Asked to stop, the row writes a checkpoint first, and nothing stays behind."""
    out = tmp_path / "out"
    given = ["bench", own, "--out", str(out), *TINY, *SLOW, "--epochs", "10000", *OFTEN, "--engine", "ray"]
    with ExitStack() as stack:
        command = [sys.executable, "-m", "sapwood", *given]
        bench = stack.enter_context(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        stack.callback(bench.kill)  # where this test fails; else it has ended
        folder = out / "rows/seq-lora-random-seed0.work/state/training"
        wait_for(lambda: newest(folder) or bench.poll() is not None)
        inside = psutil.Process(bench.pid).children(recursive=True)
        listening = [one.laddr.ip for process in inside for one in process.net_connections() if one.status == "LISTEN"]
        before = newest(folder)
        bench.send_signal(signal.SIGTERM)
        _, said = bench.communicate(timeout=60)
    assert bench.returncode == 130, said
    assert said.splitlines()[-1] == "error: stopped; finished rows are kept, the same command goes on with the others"
    assert newest(folder) > before
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert psutil.wait_procs(inside, 10)[1] == []
