"""``sapwood report``: where the page lies, and that it is whole or not there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from sapwood.cli import main
from sapwood.learner import Learner
from sapwood.report.frame import MARK


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "model"
    Learner.create(path, backbone="random:dinov2-tiny", method="ncm", image_size=28)
    return path


def report(capsys: pytest.CaptureFixture[str], state: Path, page: Path, *more: str) -> Result:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(state), "-o", str(page), *more])
    return Result(int(ended.value.code or 0), *capsys.readouterr())


def test_the_page_takes_the_place_of_the_old_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, state: Path
) -> None:
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    page.write_text(f"{MARK} old")
    link.symlink_to(page)
    assert report(capsys, state, link) == (0, f"report: {page}\n", "")
    assert page.read_text("utf-8").endswith("</html>\n")
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link.html", "page.html"]
    (tmp_path / "other").touch()
    assert page.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_page_that_cannot_be_finished_leaves_the_old_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, state: Path
) -> None:
    import resource

    page = tmp_path / "page.html"
    page.write_text(f"{MARK} old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        done = report(capsys, state, page)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "page.html: cannot be written (File too large)" in done.err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"page.html": f"{MARK} old"}


def test_places_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path, state: Path) -> None:
    places = [tmp_path / ("a" * 300), tmp_path / "file" / "page.html", tmp_path, tmp_path / "none" / "page.html"]
    if Path("/proc/self").exists():
        places.append(Path("/proc/page.html"))  # refused to everybody
    (tmp_path / "file").touch()
    for place in places:
        done = report(capsys, state, place)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), place
        assert done.err.startswith(f"error: --output {place}: "), done.err
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything can be written by root")
def test_a_page_that_is_protected(capsys: pytest.CaptureFixture[str], tmp_path: Path, state: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"{MARK} old")
    page.chmod(0o444)
    assert report(capsys, state, page).code == 2
    assert page.read_text() == "old"


def test_bad_data_leave_the_old_page(capsys: pytest.CaptureFixture[str], tmp_path: Path, state: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"{MARK} old")
    assert report(capsys, state, page, "--data", str(tmp_path / "none")).code == 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"page.html": f"{MARK} old"}
