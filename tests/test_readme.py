"""Every command and every snippet of the README runs, in the order in which it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from row_processes import Rows

from sapwood.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [(language, options.split(), text) for language, options, text in FENCE.findall(README)]


def commands() -> list[str]:
    """Lines of the sh blocks, without comments."""
    lines = [
        line
        for language, options, text in BLOCKS
        if language == "sh" and "no-test" not in options
        for line in text.splitlines()
    ]
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture
def folders(tmp_path: Path, picture_folder: Callable[..., Path], mask_folder: Callable[..., Path]) -> Path:
    """What a reader of the README has: three months of pictures, two days of masks, and a test set of each."""
    picture_folder(["kestrel", "falcon"], 10, name="march")
    picture_folder(["robin", "wren"], 10, name="april")
    picture_folder(["wren", "heron"], 10, name="may", seed=2)
    picture_folder(["kestrel", "falcon", "robin", "wren"], 2, name="testset", seed=1)
    picture_folder(["stone"], 4, name="strangers")
    mask_folder(["road", "sky"], 4, name="monday")
    mask_folder(["car", "tree"], 4, name="tuesday")
    mask_folder(["road", "sky", "car", "tree"], 2, name="streets", seed=1)
    return tmp_path


def run(command: str, cwd: Path) -> tuple[int, str]:
    """Exit code and output; a line of ours runs here, since a process of its own would take seconds to import torch."""
    arguments = shlex.split(command, comments=True)
    if arguments[0] == "sapwood" and not set("|>&;") & set(command):
        try:
            main([*arguments[1:], "--debug"])
        except SystemExit as stop:
            return int(stop.code or 0), ""
        except BaseException:
            return -1, traceback.format_exc()
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, f"{done.stdout}\n{done.stderr}"


def test_the_commands_of_the_readme_run(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], forked_rows: Rows
) -> None:
    assert len(commands()) >= 8
    monkeypatch.chdir(folders)
    for command in commands():
        if command.startswith("make "):
            code, output = run(f"make --dry-run {command.removeprefix('make ')}", ROOT)
        else:
            code, output = run(command, folders)
        if code:
            captured = capfd.readouterr()
            pytest.fail(f"{command}\n{output}\n{captured.out}\n{captured.err}")
    assert (folders / "report.html").exists()


def test_the_python_of_the_readme_runs(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = [text for language, options, text in BLOCKS if language == "python" and "no-test" not in options]
    assert snippets
    monkeypatch.chdir(folders)
    for text in snippets:
        exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})


def heading_ids(text: str) -> set[str]:
    """What a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    links = [link for link in re.findall(r"\]\(([^)]+)\)", file.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        name, _, heading = link.partition("#")
        target = file.parent / name if name else file
        assert target.exists(), link
        assert not heading or heading in heading_ids(target.read_text(encoding="utf-8")), link
    assert links or page != "README.md"
