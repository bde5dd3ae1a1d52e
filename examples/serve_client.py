"""Ask a server, and teach it a class; needs nothing but Python.

    sapwood serve birds
    python serve_client.py [--url http://127.0.0.1:8000] ask heron.jpg swan.jpg [--top 3] [--tile]
    python serve_client.py teach heron pictures/heron

Where the server wants tokens, they are taken from SAPWOOD_ASK_TOKEN and SAPWOOD_TEACH_TOKEN.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TRIES = 60


class Client:
    """A server, and the right to ask and teach it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def ask(self, pictures: Sequence[Path], top: int, tile: bool) -> list[dict[str, Any]]:
        """What each picture shows; masks of large pictures are drawn piece by piece with ``tile``."""
        images = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
        body = json.dumps({"images": images, "top": top, "tile": tile}).encode()
        with self._open("/v1/predict", "ASK", body, "application/json") as answer:
            return json.load(answer)["predictions"]

    def teach(self, name: str, pictures: Sequence[Path]) -> dict[str, Any]:
        """Teach a class, say how far it is, and give the job as it ended."""
        boundary = uuid.uuid4().hex
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="name"\r\n\r\n{name}\r\n'.encode()]
        for path in pictures:
            head = f'Content-Disposition: form-data; name="image"; filename="{quote(path.name)}"'
            parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + path.read_bytes() + b"\r\n")
        body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
        with self._open("/v1/learn", "TEACH", body, f"multipart/form-data; boundary={boundary}") as answer:
            return self.follow(answer.headers["Location"])

    def follow(self, job: str) -> dict[str, Any]:
        """Print the progress of a job as the server tells it, to its end."""
        found: dict[str, Any] = {"status": "queued"}
        while found["status"] not in ("done", "failed"):  # a connection may break before the job is over
            with self._open(job, "TEACH", accept="text/event-stream") as answer:
                for line in answer:
                    if line.startswith(b"data:"):
                        found = json.loads(line.removeprefix(b"data:"))
                        progress = found["progress"]
                        print(f"{found['status']}: {progress['what'] or ''} {progress['done']}/{progress['total']}")
        return found

    def _open(
        self,
        path: str,
        role: str,
        body: bytes | None = None,
        kind: str | None = None,
        accept: str = "application/json",
    ) -> HTTPResponse:
        """An answer; a server that is busy, or still loading its network, is asked again when it says so."""
        headers = {"Accept": accept} | ({"Content-Type": kind} if kind else {})
        if token := os.environ.get(f"SAPWOOD_{role}_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        for _ in range(TRIES):
            try:
                return urlopen(Request(self.url + path, body, headers), timeout=120)
            except HTTPError as error:
                with error:
                    problem = _problem(error)
                if error.code not in (429, 503) or "Retry-After" not in error.headers:
                    raise SystemExit(problem) from None
                time.sleep(float(error.headers["Retry-After"]))
            except (URLError, TimeoutError) as error:
                if body and isinstance(getattr(error, "reason", error), ConnectionResetError | BrokenPipeError):
                    raise SystemExit(
                        f"{self.url} broke off while it was sent {len(body) / 2**20:.0f} MiB; it may take less at a "
                        "time (sapwood serve --max-upload)"
                    ) from None
                raise SystemExit(f"{self.url} does not answer: {error}") from None
        raise SystemExit(problem)


def _problem(error: HTTPError) -> str:
    """What the server said in its problem document (RFC 9457), or its status."""
    try:
        said = json.load(error)
        return f"{said['title']}: {said['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"


def main() -> int:
    """Ask or teach, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser("ask")
    ask.add_argument("pictures", nargs="+", type=Path)
    ask.add_argument("--top", type=int, default=3)
    ask.add_argument("--tile", action="store_true", help="masks: cut large pictures into views")
    teach = commands.add_parser("teach")
    teach.add_argument("name")
    teach.add_argument("folder", type=Path)
    options = parser.parse_args()
    client = Client(options.url)
    if options.command == "ask":
        answers = client.ask(options.pictures, options.top, options.tile)
        for path, found in zip(options.pictures, answers, strict=True):
            if "mask" in found:
                told = [f"{name} {share:.1%}" for name, share in found["classes"].items()]
            else:
                told = [f"{one['class']} {one['score']:.3f}" for one in found["top"]]
                told += ["like nothing that was taught"] if found["known"] is False else []
            print(f"{path}: {', '.join(told)}")
        return 0
    pictures = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in PICTURES)
    if not pictures:
        raise SystemExit(f"{options.folder} holds no pictures")
    job = client.teach(options.name, pictures)
    for note in job["progress"]["notes"]:
        print(note, file=sys.stderr)
    print(f"version {job['version']} knows {options.name}" if job["status"] == "done" else job["error"])
    return 0 if job["status"] == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
