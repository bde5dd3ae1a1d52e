from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from .conftest import Serve
from .samples import encoded, picture, pixels


def large_png(width: int, height: int) -> bytes:
    """A picture that says it is so large, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.fixture
def asked(client: TestClient) -> Iterator[Callable[..., Any]]:
    """Sends something bad; it is refused in words, and the next good request is answered."""

    def send(status: int, words: str, **sent: Any) -> None:
        answer = client.post("/v1/predict", **sent)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        said = answer.json()
        assert said["status"] == status
        assert said["title"]
        assert words in said["detail"]
        assert "Traceback" not in answer.text

    yield send
    assert client.post("/v1/predict", files={"image": picture("ant")}).status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', 415, "not a picture"),
        (b"<!doctype html><script>alert(1)</script>", 415, "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not a picture"),
        (b"P6 2 2 255 " + bytes(12), 415, "PPM is not read here"),
        (b"", 422, "empty"),
        (picture("ant")[:-40], 422, "cannot be decoded"),
        (encoded(pixels("ant", 0, (200, 200)), "JPEG")[:700], 422, "cannot be decoded"),
        (large_png(50_000, 50_000), 413, "89,478,485 pixels at most"),
        (large_png(10_000, 10_000), 413, "89,478,485 pixels at most"),
        (large_png(9_000, 9_000), 422, "cannot be decoded"),
    ],
    ids=["svg", "html", "eps", "ppm", "empty", "cut png", "cut jpeg", "bomb", "too large", "hollow"],
)
def test_files_that_are_no_pictures(
    content: bytes, status: int, words: str, asked: Callable[..., None], client: TestClient
) -> None:
    asked(status, words, files={"image": ("holiday.jpg", content, "image/jpeg")})
    asked(status, words, files=[("image", picture("bee")), ("image", content)])
    asked(status, words, json={"images": [base64.b64encode(content).decode()]})


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"files": {"picture": b"x"}}, 400, "known are: image"),
        ({"files": [("image", picture("ant", side=8))] * 65}, 413, "64 at most"),
        ({"data": b"--B--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=B"}}, 400, "no part named"),
        ({"data": b"x", "headers": {"Content-Type": "image/png"}}, 415, "multipart/form-data"),
        ({"data": b"x"}, 415, "multipart/form-data"),
        ({"json": {"images": []}}, 400, "send {"),
        ({"json": {"images": "x"}}, 400, "send {"),
        ({"json": ["x"]}, 400, "send {"),
        ({"json": {"images": ["%%%"]}}, 400, "picture 0 is not base64"),
        ({"json": {"images": ["ü"]}}, 400, "picture 0 is not base64"),
        ({"json": {"images": ["data:image/png;base64,eA=="]}}, 400, "what follows the comma"),
        ({"json": {"images": ["eA=="] * 65}}, 413, "may hold 64"),
        ({"json": {"images": ["eA=="], "top": 0}}, 422, "top must be"),
        ({"json": {"images": ["eA=="], "top": True}}, 422, "top must be"),
        ({"data": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"data": b"\xff{}", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"params": {"top": "many"}, "files": {"image": picture("ant")}}, 422, "top: "),
        ({"params": {"top": 0}, "files": {"image": picture("ant")}}, 422, "top: "),
    ],
)
def test_requests_that_are_not_understood(
    sent: dict[str, Any], status: int, words: str, asked: Callable[..., None]
) -> None:
    asked(status, words, **({"content": sent.pop("data")} if "data" in sent else {}), **sent)


def test_wrong_ways(client: TestClient) -> None:
    assert client.head("/healthz").status_code == 200
    assert client.head("/v1/predict").status_code == 405
    for method, path, status in (("GET", "/v1/predict", 405), ("DELETE", "/v1/state", 405), ("GET", "/v2/x", 404)):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
    for path in ("/page/../../settings.py", "/page/%2e%2e%2fsettings.py", "/page/..%5csettings.py", "//etc/passwd"):
        assert client.get(path).status_code == 404


def test_names_with_markup_are_text(client: TestClient) -> None:
    name = '"><img src=x onerror=alert(1)>.png'
    answer = client.post("/v1/predict", files={"image": (name, picture("ant"))})
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.text)["predictions"][0]["name"].endswith("onerror=alert(1)>.png")


def test_limits_can_be_set(taught: Path, drawing: Path, serve: Serve) -> None:
    client = serve(taught, upload_bytes=3000, pictures=1, pixels=1500, queue=1, batch=1)
    content = picture("ant", side=30)
    assert len(content) < 2800
    assert client.post("/v1/predict", files={"image": content}).status_code == 200
    assert client.post("/v1/predict", files=[("image", content[:100])] * 2).status_code == 413
    assert client.post("/v1/predict", files={"image": picture("ant", side=40)}).status_code == 413
    assert client.post("/v1/predict", files={"image": bytes(3000)}).status_code == 413
    assert client.get("/v1/state").json()["limits"]["pixels"] == 1500
    masks = serve(drawing, pixels=1500)
    full = masks.post("/v1/predict", files=[("image", picture("ant", side=38))] * 5)  # five where four fit
    assert full.status_code == 429
    assert "fill the memory" in full.json()["detail"]
    assert masks.post("/v1/predict", files=[("image", picture("ant", side=38))] * 4).status_code == 200
    assert masks.post("/v1/predict", files=[("image", picture("ant", side=38))] * 4).status_code == 200


def test_a_bug_is_not_shown(taught: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(taught)

    def broken(questions: object) -> None:
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(client.app.state.batcher, "_answer", broken)
    answer = client.post("/v1/predict", files={"image": picture("ant")})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["title"] == "Internal error"
    assert answer.headers["X-Request-Id"]
