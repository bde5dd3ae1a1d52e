"""The client of the server against a server on a real socket, in a Python that has nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from sapwood.learner import Learner

from .serve.samples import picture, pixels
from .serve.servers import serving

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "serve_client.py"
ASK, TEACH = "a-token-to-ask-with", "a-token-to-teach-with"


def test_a_class_is_taught_and_named(tmp_path: Path) -> None:
    learner = Learner.create(tmp_path / "state", method="ncm", backbone="random:dinov2-tiny", image_size=28)
    learner.learn([(pixels(name, index), name) for name in ("ant", "bee") for index in range(8)])
    folder = tmp_path / "cat"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index} ü.png").write_bytes(picture("cat", index))
    (folder / "notes.txt").write_text("not a picture")
    asked = {name: tmp_path / f"{name}.png" for name in ("ant", "cat")}
    for name, path in asked.items():
        path.write_bytes(picture(name, 30))

    def run(*arguments: object, token: str = TEACH) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", EXAMPLE, "--url", served.address, *arguments]  # -S: nothing installed
        tokens = {"SAPWOOD_ASK_TOKEN": ASK, "SAPWOOD_TEACH_TOKEN": token}
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=tokens)

    with serving(learner.state.path, ask_token=ASK, teach_token=TEACH, upload_bytes=2**21) as served:
        refused = run("teach", "cat", folder, token="some-other-token")
        assert (refused.returncode, refused.stderr) == (1, "Wrong token: this is not the token to teach\n")
        taught = run("teach", "cat", folder)
        assert taught.returncode == 0, taught.stderr
        *progress, last = taught.stdout.splitlines()
        assert last == f"version {Learner.open(learner.state.path).state.version.id} knows cat"
        assert progress[-1].startswith("done: ")
        assert any(line.startswith("running: features ") for line in progress)
        answers = run("ask", *asked.values(), "--top", 2)
        assert answers.returncode == 0, answers.stderr
        for (name, path), line in zip(asked.items(), answers.stdout.splitlines(), strict=True):
            assert line.startswith(f"{path}: {name} ")
            assert line.count(",") >= 1
        masks = run("ask", asked["ant"], "--tile")
        assert (masks.returncode, masks.stderr.partition(",")[0]) == (1, "Not understood: tile is for masks")
        alone = run("ask", EXAMPLE)
        assert (alone.returncode, alone.stderr.partition(":")[0]) == (1, "Not a picture")
        (tmp_path / "large.png").write_bytes(bytes(3 * 2**24))
        large = run("ask", tmp_path / "large.png")
        # The answer may be lost with the connection, on which the client still writes.
        told = (
            "Upload too large: a request may be 2 MiB",
            f"{served.address.rstrip(chr(47))} broke off while it was sent 64 MiB;",
        )
        assert large.returncode == 1
        assert large.stderr.startswith(told), large.stderr
