from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sapwood.errors import ConfigError
from sapwood.serve.settings import ServeSettings, read_token

from .conftest import ASK, TEACH, Serve
from .samples import picture


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost@evil", "[::1"])
def test_other_names_are_not(client: TestClient, host: str) -> None:
    answer = client.get("/v1/state", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.headers["content-type"] == "application/problem+json"
    assert "--allow-host" in answer.json()["detail"]


def test_a_proxys_name_can_be_allowed(taught: Path, serve: Serve) -> None:
    client = serve(taught, allowed_hosts=("names.example",))
    assert client.get("/healthz", headers={"Host": "names.example:443"}).status_code == 200


def test_everywhere_means_every_address_but_no_foreign_name(taught: Path, serve: Serve) -> None:
    client = serve(taught, host="0.0.0.0", ask_token=ASK, teach_token=TEACH)
    for host, status in {"192.0.2.7:8000": 200, "[2001:db8::1]": 200, "evil.example": 421}.items():
        assert client.get("/healthz", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/learn", "/v1/undo"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:81"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_pages_of_other_origins_cannot_write(client: TestClient, path: str, headers: dict[str, str]) -> None:
    answer = client.post(path, headers=headers, files={"image": picture("ant")})
    assert answer.status_code == 403
    assert answer.json()["title"] == "Foreign origin"


def test_its_own_page_can(client: TestClient) -> None:
    headers = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/v1/predict", headers=headers, files={"image": picture("ant")}).status_code == 200


def test_two_tokens(taught: Path, serve: Serve) -> None:
    client = serve(taught, ask_token=ASK, teach_token=TEACH)
    for path in ("/v1/state", "/metrics"):
        for headers in (
            {},
            bearer("wrong"),
            bearer(ASK[:-1]),
            bearer(""),
            {"Authorization": f"Basic {ASK}"},
            bearer("ü"),
        ):
            encoded = {name: value.encode() for name, value in headers.items()}
            answer = client.get(path, headers=encoded)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert answer.json()["needs_token"] == {"ask": True, "teach": True}
            assert ASK not in answer.text
        assert client.get(path, headers=bearer(ASK)).status_code == 200
        assert client.get(path, headers=bearer(TEACH)).status_code == 200
    assert client.post("/v1/predict", files={"image": picture("ant")}).status_code == 401
    assert client.post("/v1/undo", headers=bearer(ASK)).status_code == 401
    assert client.post("/v1/learn", headers=bearer(ASK), files={"image": picture("ant")}).status_code == 401
    assert client.get("/healthz").status_code == 200
    assert client.get("/docs").status_code == 200


def test_read_only_teaches_nobody(taught: Path, serve: Serve) -> None:
    client = serve(taught, read_only=True)
    for path in ("/v1/learn", "/v1/undo"):
        answer = client.post(path)
        assert answer.status_code == 403
        assert "--read-only" in answer.json()["detail"]
    assert client.get("/v1/state").json()["read_only"] is True
    assert client.post("/v1/predict", files={"image": picture("ant")}).status_code == 200


def test_headers_of_every_answer(client: TestClient) -> None:
    answers = [client.get(path) for path in ("/healthz", "/nowhere", "/docs", "/", "/metrics")]
    answers.append(client.get("/healthz", headers={"Host": "evil.example"}))
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Sapwood-Version"].startswith("v0002-")
        assert "Access-Control-Allow-Origin" not in answer.headers
    identifiers = [answer.headers["X-Request-Id"] for answer in answers]
    assert len(set(identifiers)) == len(answers)
    given = client.get("/healthz", headers={"X-Request-Id": "mine-1"})
    assert given.headers["X-Request-Id"] == "mine-1"
    forged = client.get("/healthz", headers={"X-Request-Id": "a b<script>"})
    assert forged.headers["X-Request-Id"] != "a b<script>"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "names.example"])
def test_other_machines_need_tokens(host: str, tmp_path: Path) -> None:
    for given in ({}, {"ask_token": ASK}, {"teach_token": TEACH}, {"read_only": True}):
        with pytest.raises(ConfigError, match="needs tokens"):
            ServeSettings(tmp_path, host=host, **given)
    ServeSettings(tmp_path, host=host, ask_token=ASK, teach_token=TEACH)
    ServeSettings(tmp_path, host=host, ask_token=ASK, read_only=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "localhost", "::1", "[::1]"])
def test_this_machine_needs_none(host: str, tmp_path: Path) -> None:
    ServeSettings(tmp_path, host=host)


def test_tokens_are_long_and_never_shown(tmp_path: Path) -> None:
    assert ASK not in repr(ServeSettings(tmp_path, ask_token=ASK))
    for short in ("short", "", "sixteen or more but\n", "sixteen or more bút"):
        with pytest.raises(ConfigError, match="16 printable"):
            ServeSettings(tmp_path, teach_token=short)


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{ASK}\n")
    assert read_token("NAME", file, {"NAME": "other"}) == ASK
    assert read_token("NAME", None, {"NAME": TEACH}) == TEACH
    assert read_token("NAME", None, {}) is None
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_token("NAME", file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token("NAME", tmp_path / "missing")
