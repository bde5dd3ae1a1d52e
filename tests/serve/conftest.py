from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra: serve")

from starlette.testclient import TestClient

from sapwood.learner import Learner
from sapwood.serve.app import create_app
from sapwood.serve.settings import ServeSettings

from .samples import encoded, pixels, scene

BACKBONE, SIDE = "random:dinov2-tiny", 28
ASK, TEACH = "a-token-to-ask-with", "a-token-to-teach-with"


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state that names ants and bees; look, and do not teach it."""
    learner = Learner.create(
        tmp_path_factory.mktemp("serve") / "state", backbone=BACKBONE, method="ncm", image_size=SIDE
    )
    pairs = [(Image.fromarray(pixels(name, index)), name) for name in ("ant", "bee") for index in range(12)]
    learner.learn(pairs, task="insects")
    return learner.state.path


@pytest.fixture(scope="session")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state that draws ants and bees; look, and do not teach it."""
    folder = tmp_path_factory.mktemp("serve-masks")
    for part in ("images", "masks"):
        (folder / "data" / part).mkdir(parents=True)
    for index in range(6):
        for part, content in zip(("images", "masks"), scene(index), strict=True):
            (folder / "data" / part / f"{index}.png").write_bytes(encoded(content))
    (folder / "data" / "classes.json").write_text('{"background": 0, "ant": 1, "bee": 2}')
    learner = Learner.create(folder / "state", backbone=BACKBONE, kind="segmentation", image_size=(28, 42))
    learner.learn(folder / "data", training={"epochs": 40})
    return learner.state.path


@pytest.fixture
def copied(taught: Path, tmp_path: Path) -> Path:
    """The same state, to be changed."""
    return Path(shutil.copytree(taught, tmp_path / "copy"))


Serve = Callable[..., TestClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(state, read_only=True)``: a client of a running application; it stops with the test."""
    with ExitStack() as stack:

        def start(state: Path, **options: Any) -> TestClient:
            app = create_app(ServeSettings(state, **options))
            made = stack.enter_context(TestClient(app, base_url="http://127.0.0.1"))
            app.state.serving.load()  # random weights are drawn one network at a time
            return made

        yield start


@pytest.fixture(scope="module")
def client(taught: Path) -> Iterator[TestClient]:
    """A client of the taught state, served with the usual settings; one for a file of tests."""
    app = create_app(ServeSettings(taught))
    with TestClient(app, base_url="http://127.0.0.1") as made:
        app.state.serving.load()
        yield made
