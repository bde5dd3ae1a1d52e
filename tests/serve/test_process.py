"""A server of its own, over real sockets: what a test client inside the process cannot show."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from sapwood.learner import Learner

from .samples import picture

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals end the processes here")


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    log: Path
    state: Path

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def ask(self) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/predict", files={"image": ("secret-name.png", picture("ant"))}, timeout=150)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def running(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("server") / "log"
    options = {"--port": 0, "--connections": 40, "--queue": 128, "--timeout": 120}
    command = [sys.executable, "-m", "sapwood", "serve", str(taught)]
    command += [word for option in options.items() for word in map(str, option)]
    environment = os.environ | {"TMPDIR": str(log.parent)}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"{taught} is served at http://127.0.0.1:"), log.read_text()
        started = Running(process, line.split()[-1], log, taught)
        while httpx.get(f"{started.url}/readyz", timeout=60).status_code != 200:
            time.sleep(0.2)
        yield started
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(30)
        process.stdout.close()


def uploads(running: Running) -> list[Path]:
    return list(running.log.parent.glob("sapwood-upload-*"))


def test_a_huge_upload_is_cut_off_early(running: Running) -> None:
    host = f"Host: {running.address[0]}\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    start = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    for length in (f"Content-Length: {2**30}\r\n", "Transfer-Encoding: chunked\r\n"):
        with socket.create_connection(running.address, timeout=30) as connection:
            connection.sendall(f"POST /v1/predict HTTP/1.1\r\n{host}{length}\r\n".encode())
            chunk = bytes(2**20)
            framed = chunk if "Length" in length else b"%x\r\n%s\r\n" % (len(chunk), chunk)
            sent = 0
            with suppress(OSError):  # the server hangs up
                if "chunked" in length:
                    connection.sendall(b"%x\r\n%s\r\n" % (len(start), start))
                for _ in range(1024):
                    connection.sendall(framed)
                    sent += len(chunk)
            answer = b""
            with suppress(OSError):
                while piece := connection.recv(65536):
                    answer += piece
        assert sent < 100 * 2**20
        if "Length" in length:  # said at once; whoever goes on sending may lose the words with the connection
            assert b" 413 " in answer
    assert not uploads(running)
    assert 413 in [line.get("status") for line in running.lines()]
    assert running.ask().status_code == 200


def test_a_client_that_stops_in_the_middle(running: Running) -> None:
    for _ in range(3):
        connection = socket.create_connection(running.address, timeout=30)
        head = f"POST /v1/predict HTTP/1.1\r\nHost: {running.address[0]}\r\nContent-Length: 5000\r\n"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=B\r\n\r\n--B\r\nContent-Dis".encode())
        connection.close()
    assert running.ask().status_code == 200
    deadline = time.monotonic() + 10
    while [line.get("status") for line in running.lines()].count(499) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not uploads(running)


def test_a_thousand_connections_at_a_time(running: Running) -> None:
    """Most are told that there are too many; each is told something, and afterwards all is as before."""
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(running.address, timeout=30)) for _ in range(200)]
        assert running.ask().status_code == 200  # those who say nothing keep nobody out

        def one(number: int) -> int:
            with socket.create_connection(running.address, timeout=60) as connection:
                connection.sendall(b"GET /v1/state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = http.client.HTTPResponse(connection)
                answer.begin()
                answer.read()
                return answer.status

        with ThreadPoolExecutor(200) as pool:
            statuses = list(pool.map(one, range(800)))
        assert len(silent) == 200
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 10
    assert running.ask().status_code == 200


def test_more_pictures_than_may_wait_are_told_so(running: Running) -> None:
    files = [("image", picture("bee", side=16))] * 64

    def one(number: int) -> tuple[int, str]:
        answer = httpx.post(f"{running.url}/v1/predict", files=files, timeout=150)
        return answer.status_code, answer.headers.get("Retry-After", "")

    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(one, range(8)))
    assert told == {(200, ""), (429, "1")}


def test_the_log_is_json_and_holds_nothing_private(running: Running) -> None:
    answer = running.ask()
    line = next(line for line in running.lines() if line.get("request") == answer.headers["X-Request-Id"])
    assert line.keys() == {"time", "level", "event", "request", "method", "path", "status", "ms", "pictures"}
    assert (line["method"], line["path"], line["status"], line["pictures"]) == ("POST", "/v1/predict", 200, 1)
    assert "secret-name" not in running.log.read_text()


def test_the_port_is_taken(running: Running, taught: Path) -> None:
    command = [sys.executable, "-m", "sapwood", "serve", str(taught), "--port", str(running.address[1])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot listen at 127.0.0.1 port")
    assert done.stderr.count("\n") == 1


def test_kill_9_leaves_the_state_as_it_was(running: Running) -> None:
    def hashes() -> dict[str, str]:
        files = sorted(path for path in running.state.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = hashes()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(running.ask) for _ in range(8)]
        running.process.send_signal(signal.SIGKILL)
        assert running.process.wait(30) == -signal.SIGKILL
        for answer in asked:
            assert answer.exception() is None or isinstance(answer.exception(), httpx.HTTPError)
    assert hashes() == before
    assert Learner.open(running.state).predict([picture("bee")])[0].label == "bee"


def test_refusals_before_it_starts(taught: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_TOKEN")}
    for arguments, words in (
        ([str(taught), "--host", "0.0.0.0"], "can be reached from other machines, so it needs tokens"),
        ([str(tmp_path / "none")], "none"),
    ):
        command = [sys.executable, "-m", "sapwood", "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
