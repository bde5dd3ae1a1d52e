"""Small states, and child processes that use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sapwood
from sapwood.state import State

SOURCE = Path(sapwood.__file__).resolve().parents[1]


def text_commit(state: State, name: str = "birds", note: str = "learned") -> str:
    """Commit one more task whose only file is text; returns the file's path."""
    folder = state.free_task_folder(state.version.number, name)
    record = {"tasks": [*state.version.record["tasks"], name], "files": list(state.version.record["files"])}
    state.commit(record, {f"{folder}/log.jsonl": f'{{"task": "{name}"}}\n'}, note)
    return f"{folder}/log.jsonl"


def tree(folder: Path) -> dict[str, bytes]:
    """Relative path to bytes of every file, the lock left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def committed_files(state: State) -> set[str]:
    """What a clean folder holds: pointer, version records, and the files they name."""
    versions = state.versions()
    records = {f"versions/{version.id}.json" for version in versions}
    return {"sapwood.json"} | records | {name for version in versions for name in version.record["files"]}


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own that runs ``script``, with our sources and this folder on its path."""
    places = [str(SOURCE), str(Path(__file__).parent)]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {places!r}\n{script}"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
