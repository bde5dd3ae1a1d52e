"""A server under load: requests a second with and without micro-batching; memory and failures while it learns.

    python benchmarks/serving.py [--json] [--backbone random:dinov2-s14] [--image-size 56] [--clients 16] [--turns 5]
                                 [--seconds 4] [--minutes 0]

Two servers of the same state, each a process of its own: one puts the pictures that come together through the network
together (as ``sapwood serve`` does), the other takes one at a time. Clients ask for one picture after the other over
connections that stay open; the servers take turns and ratios are taken turn by turn. Then, with ``--minutes``, the
first server is asked by four clients while it is taught a class, taught it back out, and so on: every answer that is
not 200 is counted, and the memory of its process is read once a second.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image

from sapwood.learner import Learner

SIDE = 96
CLASSES = ("ant", "bee", "cat", "dog")
BOUNDARY = "picture"


def pixels(name: str, index: int) -> np.ndarray:
    """A noisy picture of a colour that follows from the name."""
    random = np.random.default_rng([index, *name.encode()])
    colour = np.random.default_rng(list(name.encode())).integers(40, 216, 3)
    return (colour + random.normal(0, 20, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)


def jpeg(name: str, index: int) -> bytes:
    """The same as a file."""
    stored = io.BytesIO()
    Image.fromarray(pixels(name, index)).save(stored, format="JPEG", quality=90)
    return stored.getvalue()


def form(fields: Sequence[tuple[str, str | None, bytes]]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a form."""
    body = b""
    for name, filename, content in fields:
        file = f'; filename="{filename}"' if filename else ""
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class Client:
    """One connection that stays open."""

    def __init__(self, url: str) -> None:
        self.where = urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.where, timeout=120)

    def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON."""
        try:
            self.connection.request(method, path, body, headers or {})
            answer = self.connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = http.client.HTTPConnection(self.where, timeout=120)
            return 0, None


@contextmanager
def server(state: Path, batch: int) -> Iterator[tuple[str, psutil.Process]]:
    """Its address and process."""
    command = [sys.executable, __file__, "--serve", str(state), "--batch", str(batch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            if not url:
                raise RuntimeError("the server did not start")
            client = Client(url)
            while client.send("GET", "/readyz")[0] != 200:
                time.sleep(0.1)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def load(url: str, clients: int, seconds: float) -> tuple[float, int, list[float]]:
    """Requests a second, how many failed, and the seconds of each."""
    until, times, failed = time.perf_counter() + seconds, [], 0
    bodies = [form([("image", "a.jpg", jpeg(CLASSES[index % 4], index))]) for index in range(clients)]

    def one(number: int) -> None:
        nonlocal failed
        client = Client(url)
        while (started := time.perf_counter()) < until:
            status, _ = client.send("POST", "/v1/predict", *bodies[number])
            times.append(time.perf_counter() - started)
            failed += status != 200

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) / (time.perf_counter() - started), failed, times


def compare(state: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both servers in turn."""
    rates: dict[str, list[float]] = {"together": [], "one by one": []}
    delays: dict[str, list[float]] = {"together": [], "one by one": []}
    failed = 0
    with ExitStack() as stack:
        urls = {"together": stack.enter_context(server(state, options.batch))[0]}
        urls["one by one"] = stack.enter_context(server(state, 1))[0]
        for url in urls.values():
            load(url, options.clients, min(1, options.seconds))
        for _ in range(options.turns):
            for side, url in urls.items():
                rate, bad, times = load(url, options.clients, options.seconds)
                rates[side].append(rate)
                delays[side] += times
                failed += bad
    ratios = [one / other for one, other in zip(rates["together"], rates["one by one"], strict=True)]
    return {
        "requests_per_second": {side: statistics.median(found) for side, found in rates.items()},
        "median_seconds": {side: statistics.median(found) for side, found in delays.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "failed": failed,
    }


def teach(url: str, stop: threading.Event, told: dict[str, int]) -> None:
    """Teach a class, wait for it, undo it, again and again."""
    client = Client(url)
    lesson = form([("name", None, b"eel"), *(("image", f"{number}.jpg", jpeg("eel", number)) for number in range(12))])
    while not stop.is_set():
        status, job = client.send("POST", "/v1/learn", *lesson)
        while status in (200, 202) and job["status"] in ("queued", "running") and not stop.is_set():
            time.sleep(0.25)
            status, job = client.send("GET", f"/v1/jobs/{job['job']}")
        done = status == 200 and job["status"] == "done"
        told["learned" if done else "not learned"] += 1
        if done:
            told["undone" if client.send("POST", "/v1/undo")[0] == 200 else "not undone"] += 1
        stop.wait(0.5)


def soak(state: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Minutes of load with learning going on."""
    memory: list[int] = []
    told = dict.fromkeys(("learned", "not learned", "undone", "not undone"), 0)
    stop = threading.Event()
    with server(state, options.batch) as (url, process):

        def watch() -> None:
            while not stop.is_set():
                memory.append(process.memory_info().rss)
                stop.wait(1)

        threads = [threading.Thread(target=watch), threading.Thread(target=teach, args=(url, stop, told))]
        for thread in threads:
            thread.start()
        rate, failed, times = load(url, 4, 60 * options.minutes)
        stop.set()
        for thread in threads:
            thread.join()
    fifth = max(1, len(memory) // 5)
    return {
        "minutes": options.minutes,
        "requests": len(times),
        "requests_per_second": rate,
        "failed": failed,
        "slowest_seconds": max(times),
        **told,
        "memory_mib": {
            "second fifth": statistics.median(memory[fifth : 2 * fifth]) / 2**20,
            "last fifth": statistics.median(memory[-fifth:]) / 2**20,
            "most": max(memory) / 2**20,
        },
    }


def main() -> None:
    """Measure and print, or serve for a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--backbone", default="random:dinov2-s14")
    parser.add_argument("--image-size", type=int, default=56)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        from sapwood.serve.running import serve
        from sapwood.serve.settings import ServeSettings

        settings = ServeSettings(options.serve, port=0, batch=options.batch, window=0.004 if options.batch > 1 else 0)
        serve(settings, lambda url: print(url, flush=True))
        return
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner.create(
            Path(folder) / "state", backbone=options.backbone, method="ncm", image_size=options.image_size
        )
        learner.learn([(Image.fromarray(pixels(name, index)), name) for name in CLASSES for index in range(12)])
        found: dict[str, Any] = {"backbone": options.backbone, "image_size": options.image_size}
        found["clients"] = options.clients
        if options.turns:
            found |= compare(learner.state.path, options)
        if options.minutes:
            found["soak"] = soak(learner.state.path, options)
    if options.json:
        print(json.dumps(found))
        return
    if options.turns:
        for side, rate in found["requests_per_second"].items():
            print(f"{side:12} {rate:8.1f} requests/s, median {1000 * found['median_seconds'][side]:.1f} ms")
        print(f"ratio        {found['ratio']:8.2f} ({min(found['ratios']):.2f} to {max(found['ratios']):.2f})")
        print(f"failed       {found['failed']:8d}")
    if options.minutes:
        print(json.dumps(found["soak"], indent=2))


if __name__ == "__main__":
    main()
