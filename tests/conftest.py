"""What every test may ask for: a quiet environment, the benchmark data, and small pictures that can be told apart."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

pytest_plugins = ("decoding", "meeting", "row_processes")

# Before anything imports torch or transformers: both read these once. Processes that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the hub is a test that fails on a train
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's thread count, here and in child processes
os.environ["MPLBACKEND"] = "Agg"
os.environ["NO_COLOR"] = "1"  # plain text in what the command line prints
for _name in ("FORCE_COLOR", "PYTEST_ADDOPTS"):
    os.environ.pop(_name, None)
# SAPWOOD_CACHE stays as it is: the offline backbone is downloaded once, not once a test run.

ROOT = Path(__file__).resolve().parents[1]

# Files that take long, the longest first: begun first, so that no worker ends with one alone.
_LONG = (
    "test_readme.py",
    "bench/test_ray.py",
    "registry/test_onnx.py",
    "bench/test_pool.py",
    "registry/test_methods.py",
    "world/test_command.py",
    "serve/browser/test_browser.py",
    "resuming/test_resume.py",
    "cli/test_process.py",
    "registry/test_all_parts.py",
    "export/test_onnx.py",
    "world/test_together.py",
    "registry/test_later_rounds.py",
    "registry/test_combinations.py",
    "registry/test_exports.py",
    "serve/browser/test_masks.py",
    "masks/test_resume.py",
    "state/test_interruptions.py",
    "bench/test_budget.py",
    "cli/test_street_scenes.py",
    "test_benchmarks.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """The garbage collector leaves alone what is collected, which stays; forked processes then share its memory."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order within a file stays."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds cifar10/ and camvid/: SAPWOOD_DATA, else ../shared/data; skips where there is none.

    With SAPWOOD_REQUIRE_DATA=1 a missing folder is a failure: the checks that need it may not vanish silently.
    """
    chosen = os.environ.get("SAPWOOD_DATA")
    folder = Path(chosen) if chosen else ROOT.parent / "shared" / "data"
    missing = [name for name in ("cifar10", "camvid") if not (folder / name).is_dir()]
    if not missing:
        return folder
    reason = f"benchmark data: no {' and no '.join(missing)} in {folder} (set SAPWOOD_DATA)"
    if os.environ.get("SAPWOOD_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class Learning:
    """A process that learns rounds (``learning_process.py``), and what the present one has said."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        self.errors = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(ROOT / "tests" / "learning_process.py")],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def __call__(
        self, state: Path, data: Path, when: Callable[[dict[str, Any]], int | None] = lambda said: None, **job: Any
    ) -> tuple[int, list[dict[str, Any]]]:
        """Exit status (negative: killed by that signal) and all that was said; ``when`` may answer with a signal."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"state": str(state), "data": str(data), **job}) + "\n")
        self.process.stdin.flush()
        child, said = 0, []
        for line in self.process.stdout:
            said.append(json.loads(line))
            if "status" in said[-1]:
                return said[-1]["status"], said
            child = said[-1].get("pid", child)
            if (number := when(said[-1])) is not None:
                with suppress(ProcessLookupError):  # it was faster
                    os.kill(child, number)
        self.errors.seek(0)
        raise AssertionError(self.errors.read())


@pytest.fixture(scope="session")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learning]:
    """``learning(state, data, task="second", die="training 7")``; only where processes fork."""
    made = Learning(tmp_path_factory.mktemp("learning"))
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(30)


def pattern(name: str, index: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Picture ``index`` of class ``name``: coloured stripes, uint8 [size, size, 3].

    Colour, slope and width of the stripes follow from the name alone, so that even a backbone with random weights
    tells two classes apart; phase, brightness and noise differ from picture to picture.
    """
    kind = hashlib.sha256(name.encode()).digest()
    random = np.random.default_rng([seed, index, *kind[:8]])
    angle = np.pi * kind[0] / 256
    width = 3 + kind[1] % 8
    dark, bright = np.frombuffer(kind[2:8], np.uint8).reshape(2, 3) / 255.0
    y, x = np.mgrid[:size, :size]
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / width + random.uniform(0, 2 * np.pi))
    picture = dark + (bright - dark) * (wave[..., None] + 1) / 2
    picture = picture * random.uniform(0.8, 1.0) + random.normal(0, 0.04, picture.shape)
    return (255 * picture.clip(0, 1)).round().astype(np.uint8)


class PictureFolder(Protocol):
    """Makes a class folder and gives its path."""

    def __call__(
        self,
        classes: Iterable[str] | Mapping[str, int],
        per_class: int = 6,
        *,
        name: str = "pictures",
        size: int = 32,
        suffix: str = ".png",
        seed: int = 0,
    ) -> Path: ...


@pytest.fixture
def picture_folder(tmp_path: Path) -> PictureFolder:
    """Factory of class folders below ``tmp_path``: ``picture_folder(["cat", "dog"], 6)`` or ``({"cat": 1, "dog": 9})``.

    The same arguments give the same bytes; another ``seed`` gives other pictures of the same classes (a test set).
    """

    def make(
        classes: Iterable[str] | Mapping[str, int],
        per_class: int = 6,
        *,
        name: str = "pictures",
        size: int = 32,
        suffix: str = ".png",
        seed: int = 0,
    ) -> Path:
        counts = dict(classes) if isinstance(classes, Mapping) else dict.fromkeys(classes, per_class)
        folder = tmp_path / name
        for label, count in counts.items():
            (folder / label).mkdir(parents=True)
            for index in range(count):
                picture = Image.fromarray(pattern(label, index, size, seed))
                picture.save(folder / label / f"{index:03d}{suffix}")
        return folder

    return make


class MaskFolder(Protocol):
    """Makes a folder of images/, masks/ and classes.json, and gives its path."""

    def __call__(
        self,
        classes: Iterable[str] | Mapping[str, int],
        count: int = 6,
        *,
        also: Iterable[str] = (),
        name: str = "masks",
        size: tuple[int, int] | Sequence[tuple[int, int]] = (28, 42),
        values: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> Path: ...


@pytest.fixture
def mask_folder(tmp_path: Path) -> MaskFolder:
    """Factory of folders of pictures with masks below ``tmp_path``: ``mask_folder(["road", "car"], 6)``.

    A picture is cut into 2 x 3 cells; each class (at most five) has its stripes (``pattern``) in one of them or more,
    the rest, at least one cell, is grey.

    - classes: names that the masks label, in all ``count`` pictures, or ``{"road": 6, "car": 2}``, in the first few.
    - also: classes whose stripes are in every picture, while the masks call them background.
    - size: (height, width) of the pictures, or several that take turns.
    - values: of the classes in the masks; by default 1, 2, … in the order of ``classes``.

    The same arguments give the same bytes; another ``seed`` gives other pictures of the same classes (a test set).
    """

    def make(
        classes: Iterable[str] | Mapping[str, int],
        count: int = 6,
        *,
        also: Iterable[str] = (),
        name: str = "masks",
        size: tuple[int, int] | Sequence[tuple[int, int]] = (28, 42),
        values: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> Path:
        counts = dict(classes) if isinstance(classes, Mapping) else dict.fromkeys(classes, count)
        legend = dict(values or {label: value for value, label in enumerate(counts, 1)})
        sizes = [size] if isinstance(size[0], int) else list(size)
        folder = tmp_path / name
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for index in range(max(count, *counts.values())):
            shown = [label for label, most in counts.items() if index < most] + list(also)
            picture, mask = _scene(shown, legend, index, sizes[index % len(sizes)], seed)
            Image.fromarray(picture).save(folder / "images" / f"{index:03d}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{index:03d}.png")
        (folder / "classes.json").write_text(json.dumps({"background": 0, **legend}))
        return folder

    return make


def _scene(
    shown: Sequence[str], legend: Mapping[str, int], index: int, size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Picture ``index`` (uint8 [H, W, 3]) and its mask (uint8 [H, W])."""
    random = np.random.default_rng([seed, index, len(shown)])
    height, width = size
    cells = (np.arange(height) * 2 // height)[:, None] * 3 + np.arange(width) * 3 // width
    owners = random.permutation([-1, *range(len(shown)), *random.integers(-1, len(shown), 5 - len(shown))])
    picture = np.clip(random.normal(128, 6, (height, width, 3)), 0, 255).round().astype(np.uint8)
    mask = np.zeros(size, np.uint8)
    for cell, owner in enumerate(owners):
        if owner >= 0:
            stripes = pattern(shown[owner], index, max(size), seed)[:height, :width]
            picture[cells == cell] = stripes[cells == cell]
            mask[cells == cell] = legend.get(shown[owner], 0)
    return picture, mask
