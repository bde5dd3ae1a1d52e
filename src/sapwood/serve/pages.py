"""What a browser gets: the page with its parts, and the history that it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse

from sapwood.errors import StateError
from sapwood.report.history import read_history
from sapwood.serve.problems import Problem
from sapwood.serve.security import require_ask
from sapwood.state import State
from sapwood.state.records import read_version

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page itself; it holds nothing of the state and asks for it with the reader's token."""
    return _file("index.html")


@router.get("/page/{name}", include_in_schema=False)
async def part(name: str) -> FileResponse:
    """A style sheet, a module or the icon: what lies in the folder, and nothing else."""
    return _file(name)


@router.get(
    "/v1/history",
    tags=["ask"],
    dependencies=[Depends(require_ask)],
    summary="What was learned, round by round, how well, and what it took.",
)
def history(request: Request) -> dict[str, Any]:
    """Rounds, accuracy matrix and costs of the version that answers, and what an undo would change."""
    app = request.app.state
    current = app.serving.current()
    record = current.learner.record
    return {
        "name": app.settings.state.resolve().name,
        "version": current.version,
        "created": record["created"],
        "undo": _step_back(current.learner.state),
        **read_history(record).as_json(),
    }


def _step_back(state: State) -> dict[str, Any] | None:
    """Where an undo leads: what is dropped half learned, which classes go or come back; None without a step back."""
    record = state.version.record
    if (half := state.training.half_learned(record["tasks"])) is not None:
        return {"to": state.version.id, "drops": half, "rounds": [], "goes": [], "returns": []}
    if (parent := record.get("parent")) is None:
        return None
    try:
        earlier = read_version(state.path, parent).record
    except StateError:  # it was pruned
        return None
    now, before = ([entry["name"] for entry in one["classes"]] for one in (record, earlier))
    return {
        "to": parent,
        "drops": None,
        "rounds": [task["name"] for task in record["tasks"][len(earlier["tasks"]) :]],
        "goes": [name for name in now if name not in before],
        "returns": [name for name in before if name not in now],
    }


def _file(name: str) -> FileResponse:
    if name not in FILES:
        raise Problem(404, "Not found", f"the page has no part called {name[:80]!r}")
    # Asked for anew each time: after an update of the server no part of the page may be an old one.
    return FileResponse(FILES[name], media_type=TYPES[FILES[name].suffix], headers={"Cache-Control": "no-cache"})
