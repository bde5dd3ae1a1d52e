from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from sapwood.serve.problems import Problem
from sapwood.serve.shelf import Shelf
from sapwood.serve.uploads import Upload, read_body, read_upload

LIMITS: dict[str, Any] = {"most_bytes": 10_000, "most_files": 2, "files": ["image"], "fields": ["name"], "seconds": 0.2}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--B--\r\n"


def request(
    pieces: Sequence[bytes | str], length: int | None = None, kind: str = "multipart/form-data; boundary=B"
) -> Request:
    """``pieces`` come one by one; "stall" is a client that says no more, "gone" one that hangs up, "slow" a pause."""
    left: Iterator[tuple[int, bytes | str]] = iter(enumerate(pieces, 1))

    async def receive() -> dict[str, Any]:
        number, piece = next(left)
        if piece == "stall":
            await asyncio.sleep(60)
        if piece == "slow":
            await asyncio.sleep(0.07)
            piece = b"x"
        if piece == "gone":
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": number < len(pieces)}

    headers = [(b"content-type", kind.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def read(*pieces: bytes | str, **more: Any) -> Upload:
    options = {key: more.pop(key) for key in list(more) if key in LIMITS}
    return asyncio.run(read_upload(request(pieces, **more), Shelf(), **(LIMITS | options)))


def left(scratch: Path) -> list[Path]:
    return [path for path in scratch.glob("*/*") if path.name != "lock"]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_files_and_fields_arrive_whole(step: int, scratch: Path) -> None:
    first, second = bytes(range(256)) * 3, b"\r\n--Not the end\r\n"
    body = form(part("image", first, "../../etc/pass wd"), part("name", "bär".encode()), part("image", second, ""))
    upload = read(*(body[start : start + step] for start in range(0, len(body), step)))
    assert [file.path.read_bytes() for file in upload.of("image")] == [first, second]
    assert [file.size for file in upload.parts] == [len(first), len(second)]
    assert upload.parts[0].name == "../../etc/pass wd"
    assert all(file.path.parent == upload.folder and upload.folder.parent.parent == scratch for file in upload.parts)
    assert upload.fields == {"name": "bär"}
    upload.remove()
    assert not left(scratch)


@pytest.mark.parametrize(
    ("pieces", "options", "status", "words"),
    [
        ([b"x"], {"length": 10_001}, 413, "MiB at most"),
        ([part("image", b"x" * 6000, "a"), part("image", b"x" * 6000, "b")], {}, 413, "MiB at most"),
        ([form(*(part("image", b"x", "a") for _ in range(3)))], {}, 413, "2 at most"),
        ([part("image", b"abc", "a"), "stall"], {}, 408, "nothing came"),
        ([part("image", b"abc", "a")[:-4], *["slow"] * 9], {}, 408, "bytes came so far"),
        ([part("name", b"x") * 200], {"most_bytes": 20_000}, 413, "far more parts"),
        ([part("image", b"abc", "a")], {}, 400, "before its last boundary"),
        ([part("image", b"abc", "a")[:40]], {}, 400, "before its last boundary"),
        ([b"GIF89a"], {}, 400, "not multipart"),
        ([form(part("picture", b"abc", "a"))], {}, 400, "known are: image, name"),
        ([form(part("name", b"n" * 70_000))], {"most_bytes": 100_000}, 413, "64 KiB"),
        ([b"{}"], {"kind": "application/json"}, 415, "multipart/form-data"),
        ([b"{}"], {"kind": "multipart/form-data"}, 415, "multipart/form-data"),
    ],
)
def test_what_is_refused_leaves_nothing(
    pieces: list[bytes | str], options: dict[str, Any], status: int, words: str, scratch: Path
) -> None:
    with pytest.raises(Problem, match=words) as raised:
        read(*pieces, **options)
    assert raised.value.status == status
    assert not left(scratch)


def test_a_client_that_goes_leaves_nothing(scratch: Path) -> None:
    with pytest.raises(ClientDisconnect):
        read(part("image", b"abc", "a"), "gone")
    assert not left(scratch)


def test_nothing_is_read_past_the_limit() -> None:
    asked = request([b"x" * 1000] * 5)
    with pytest.raises(Problem):
        asyncio.run(read_body(asked, 2500, 1))
    assert len(asyncio.run(asked.receive())["body"]) == 1000  # the fourth piece is still there
    assert asyncio.run(read_body(request([b"ab", b"c"]), 3, 1)) == b"abc"


def test_a_full_disk_is_said_in_words(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Shelf) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Shelf, "make", full)
    with pytest.raises(Problem, match="No space left") as raised:
        read(form(part("image", b"abc", "a")))
    assert raised.value.status == 507
