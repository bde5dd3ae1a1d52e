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

from sapwood.cli import main
from sapwood.learner import Learner
from sapwood.serve.settings import ASK_TOKEN, TEACH_TOKEN
from sapwood.serve.shelf import Shelf

from .samples import picture

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals end the processes here")


CONNECTIONS = 16
# A connection for each request. To read the certificates of the world takes a tenth of a second every time.
CLIENT = httpx.Client(verify=False, timeout=150, limits=httpx.Limits(max_keepalive_connections=0))


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
        return CLIENT.post(f"{self.url}/v1/predict", files={"image": ("secret-name.png", picture("ant"))})

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def running(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("server") / "log"
    options = {"--port": 0, "--connections": CONNECTIONS, "--queue": 32, "--max-pictures": 32, "--timeout": 120}
    command = [sys.executable, "-m", "sapwood", "serve", str(taught)]
    command += [word for option in options.items() for word in map(str, option)]
    environment = os.environ | {"TMPDIR": str(log.parent)}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"{taught} is served at http://127.0.0.1:"), log.read_text()
        started = Running(process, line.split()[-1], log, taught)
        while CLIENT.get(f"{started.url}/readyz").status_code != 200:
            time.sleep(0.2)
        yield started
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(30)
        process.stdout.close()


def uploads(running: Running) -> list[Path]:
    return [path for path in running.log.parent.glob("sapwood-uploads-*/*") if path.name != "lock"]


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


def test_more_connections_than_there_may_be(running: Running) -> None:
    """Each is told something, and in words; afterwards all is as before."""

    def one(number: int) -> tuple[int, str]:
        with socket.create_connection(running.address, timeout=60) as connection:
            connection.sendall(b"GET /v1/state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, str(json.loads(answer.read()).get("detail"))

    with ExitStack() as stack, ThreadPoolExecutor(20) as pool:

        def silent(count: int) -> None:
            for _ in range(count):
                stack.enter_context(socket.create_connection(running.address, timeout=30))

        silent(60)
        assert running.ask().status_code == 200  # those who say nothing keep nobody out
        silent(CONNECTIONS * 8 - 60)
        assert {status for status, words in pool.map(one, range(20)) if "try again" in words} == {503}
    deadline = time.monotonic() + 20
    while running.ask().status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_not_http_is_told_so(running: Running) -> None:
    for sent in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n"):
        with socket.create_connection(running.address, timeout=30) as connection:
            connection.sendall(sent)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, answer.getheader("Content-Type")) == (400, "application/problem+json")
            assert json.loads(answer.read())["title"] == "Not HTTP"


def test_more_pictures_than_may_wait_are_told_so(running: Running) -> None:
    files = [("image", picture("bee", side=16))] * 32

    def one(number: int) -> tuple[int, str]:
        answer = CLIENT.post(f"{running.url}/v1/predict", files=files)
        return answer.status_code, answer.headers.get("Retry-After", "")

    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(one, range(8)))
    assert told == {(200, ""), (429, "1")}


def test_the_log_is_json_and_holds_nothing_private(running: Running) -> None:
    answer = running.ask()
    deadline = time.monotonic() + 20
    while not (found := [each for each in running.lines() if each.get("request") == answer.headers["X-Request-Id"]]):
        assert time.monotonic() < deadline  # it is written after the answer
        time.sleep(0.02)
    (line,) = found
    assert line.keys() == {"time", "level", "event", "request", "method", "path", "status", "ms", "pictures"}
    assert (line["method"], line["path"], line["status"], line["pictures"]) == ("POST", "/v1/predict", 200, 1)
    assert "secret-name" not in running.log.read_text()


def test_the_port_is_taken(running: Running, taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(taught), "--port", str(running.address[1])])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("error: cannot listen at 127.0.0.1 port")
    assert told.count("\n") == 1


def test_kill_9_leaves_the_state_as_it_was(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashes() -> dict[str, str]:
        files = sorted(path for path in running.state.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = hashes()
    start = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nmine'
    head = "Host: localhost\r\nContent-Length: 5000\r\nContent-Type: multipart/form-data; boundary=B\r\n\r\n"
    with socket.create_connection(running.address) as half, ThreadPoolExecutor(4) as pool:
        half.sendall(f"POST /v1/predict HTTP/1.1\r\n{head}".encode() + start)
        while not uploads(running):
            time.sleep(0.01)
        asked = [pool.submit(running.ask) for _ in range(8)]
        running.process.send_signal(signal.SIGKILL)
        assert running.process.wait(30) == -signal.SIGKILL
        for answer in asked:
            assert answer.exception() is None or isinstance(answer.exception(), httpx.HTTPError)
    assert hashes() == before
    assert uploads(running)
    monkeypatch.setattr("tempfile.tempdir", str(running.log.parent))
    Shelf().close()  # as the next server does
    assert not list(running.log.parent.glob("sapwood-uploads-*"))
    assert Learner.open(running.state).predict([picture("bee")])[0].label == "bee"


def test_refusals_before_it_starts(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (ASK_TOKEN, TEACH_TOKEN):
        monkeypatch.delenv(name, raising=False)
    for arguments, words in (
        ([str(taught), "--host", "0.0.0.0"], "can be reached from other machines, so it needs tokens"),
        ([str(tmp_path / "none")], "none"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["serve", *arguments])
        told = capsys.readouterr().err
        assert ended.value.code == 2
        assert words in told
        assert told.startswith("error: ")
        assert told.count("\n") == 1
