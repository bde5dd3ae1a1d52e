"""What teaches over HTTP: new rounds, how far they are, and the step back."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from sapwood.data.files import PICTURE_SUFFIXES
from sapwood.data.names import class_name, shown
from sapwood.data.sources import LAYOUT
from sapwood.errors import DataError
from sapwood.kinds import KINDS, kind_of
from sapwood.serve.archives import ArchiveLimits, unpack
from sapwood.serve.jobs import Busy, Jobs, QueueFull
from sapwood.serve.pictures import check_picture
from sapwood.serve.problems import Problem
from sapwood.serve.security import require_teach
from sapwood.serve.serving import Serving
from sapwood.serve.settings import ServeSettings
from sapwood.serve.shelf import Shelf
from sapwood.serve.uploads import Part, Upload, no_room, read_upload
from sapwood.serve.worker import Order
from sapwood.state import State, take_back

MOST_NAME = 200
"""Characters of the name of a class or round."""
MOST_EPOCHS = 10_000
_LOOK = 0.1  # seconds between two looks at a job that somebody listens to
_ALIVE = 15.0  # seconds after which a silent stream says that it is there
_RETRY = {"Retry-After": "10"}


@asynccontextmanager
async def _running(app: FastAPI) -> AsyncIterator[None]:
    settings: ServeSettings = app.state.settings
    app.state.jobs = Jobs(settings.state, settings.jobs, app.state.serving.keep_up)
    try:
        yield
    finally:
        await asyncio.to_thread(app.state.jobs.close)


router = APIRouter(tags=["teach"], lifespan=_running)

_FIELDS = {
    "name": {"type": "string", "maxLength": MOST_NAME, "description": "The class that all pictures show."},
    "image": {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "Its pictures."},
    "archive": {
        "type": "string",
        "format": "binary",
        "description": "Instead: a zip of class folders; for masks of images/, masks/ and classes.json.",
    },
    "task": {"type": "string", "maxLength": MOST_NAME, "description": "Name of the round."},
    "epochs": {"type": "integer", "minimum": 1, "maximum": MOST_EPOCHS, "description": "Passes over the pictures."},
    "restart": {"type": "boolean", "description": "Throw away a round that is half learned."},
    "relearn": {"type": "boolean", "description": "Learn pictures again that were learned before as the same class."},
}
_FILES = ("image", "archive")
_FORM = {"schema": {"type": "object", "properties": _FIELDS}}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": _FORM}}}


@router.post(
    "/v1/learn",
    status_code=202,
    dependencies=[Depends(require_teach)],
    openapi_extra=_BODY,
    summary="Teach a class with its pictures, or an archive of many.",
)
async def learn(request: Request) -> JSONResponse:
    """Queue a round; the answer names the job to follow. What the state knew answers until the round is learned."""
    app = request.app.state
    settings: ServeSettings = app.settings
    if app.jobs.full:  # before the upload
        raise _full()
    upload = await read_upload(
        request,
        app.shelf,
        most_bytes=settings.teach_bytes,
        most_files=settings.teach_pictures,
        files=_FILES,
        fields=[name for name in _FIELDS if name not in _FILES],
        seconds=settings.timeout,
    )
    request.state.pictures = len(upload.of("image"))
    kind = app.serving.current().learner.kind.name
    # A client that goes away does not leave half a lesson: the thread runs to its end either way.
    job = await asyncio.shield(asyncio.to_thread(_accept, upload, kind, settings, app.shelf, app.jobs))
    return JSONResponse(
        {"job": job["job"], "status": job["status"]}, 202, headers={"Location": f"/v1/jobs/{job['job']}"}
    )


@router.get("/v1/jobs", dependencies=[Depends(require_teach)], summary="All jobs, the newest first.")
async def jobs(request: Request) -> dict[str, Any]:
    """Jobs of this server since its start."""
    return {"jobs": request.app.state.jobs.list()}


@router.get(
    "/v1/jobs/{job}",
    dependencies=[Depends(require_teach)],
    summary="How far a job is; a stream of events if text/event-stream is accepted.",
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def job(request: Request, job: str) -> Response:
    """The job as it is now, or the events ``progress``, then ``done`` or ``failed``, each with the job as data."""
    found = request.app.state.jobs.get(job)
    if found is None:
        raise Problem(404, "No such job", "this server knows no such job; it forgets them when it is started again")
    if "text/event-stream" not in request.headers.get("accept", ""):
        return JSONResponse(found[1])
    # Proxies must not hold the events back until there are enough of them.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(request.app.state.jobs, job), media_type="text/event-stream", headers=headers)


@router.post("/v1/undo", dependencies=[Depends(require_teach)], summary="Go back by one change.")
async def undo(request: Request) -> dict[str, str]:
    """The step back is a version of its own; another one goes one change further back.

    ``?version=v7``, with ``&drops=ROUND`` if one is half learned: only if that is what the history shows.
    """
    app, asked = request.app.state, request.query_params
    seen = (asked["version"], asked.get("drops")) if "version" in asked else None
    return await asyncio.shield(asyncio.to_thread(_undo, app.settings, app.jobs, app.serving, seen))


async def _events(jobs: Jobs, identifier: str) -> AsyncIterator[str]:
    """Server-sent events of a job from its present state on."""
    seen, told = -1, time.monotonic()
    while (found := jobs.get(identifier)) is not None:
        revision, content = found
        now = time.monotonic()
        if revision != seen:
            seen, told = revision, now
            event = content["status"] if content["status"] in ("done", "failed") else "progress"
            yield f"id: {revision}\nevent: {event}\ndata: {json.dumps(content)}\n\n"
            if event != "progress":
                return
        elif now - told > _ALIVE:
            told = now
            yield ": still here\n\n"
        if jobs.closed:
            return
        await asyncio.sleep(_LOOK)


def _accept(upload: Upload, kind: str, settings: ServeSettings, shelf: Shelf, jobs: Jobs) -> dict[str, Any]:
    """Check an upload and queue it; whatever happens, no upload stays behind."""
    folder = None
    try:
        folder = shelf.make()
        order, teaches = _order(upload, folder, kind, settings)
        upload.remove()  # what is needed lies in the folder
        return jobs.submit(order, teaches)
    except BaseException as error:
        upload.remove()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, QueueFull):
            raise _full() from error
        if isinstance(error, OSError):
            raise no_room(error) from error
        raise


def _order(upload: Upload, folder: Path, kind: str, settings: ServeSettings) -> tuple[Order, str]:
    """What is to be learned, with its pictures moved into ``folder``; and what it is called.

    Raises:
        Problem: 400 parts missing; 413 too much; 415, 422 not what it should be.
    """
    fields = upload.fields
    pictures, archives = upload.of("image"), upload.of("archive")
    if bool(pictures) == bool(archives) or len(archives) > 1:
        raise Problem(400, "What to learn", "send either pictures of one class (name, image) or one archive")
    common: dict[str, Any] = {
        "state": str(settings.state),
        "folder": str(folder),
        "task": _name(fields["task"], "round") if fields.get("task", "").strip() else None,
        "training": _training(fields),
        "device": settings.device,
        **{each: fields.get(each, "").strip().lower() in ("true", "1", "yes", "on") for each in ("restart", "relearn")},
    }
    if archives:
        named = _unpacked(archives[0].path, folder, kind, settings)
        return Order(**common), named
    if kind == "segmentation":
        raise Problem(
            422, "Masks needed", "this state draws masks: send an archive of images/, masks/ and classes.json"
        )
    if not fields.get("name", "").strip():
        raise Problem(400, "Name needed", "say in the field 'name' which class the pictures show")
    label = _name(fields["name"], "class")
    return Order(**common, label=label, pictures=[_taken(part, folder, settings) for part in pictures]), label


def _taken(part: Part, folder: Path, settings: ServeSettings) -> tuple[str, str]:
    """What to call a picture, and the file that it now is in ``folder``."""
    name = shown(part.name)[:MOST_NAME]
    if part.size > settings.upload_bytes:
        most = f"{settings.upload_bytes / 2**20:g} MiB"
        raise Problem(413, "Picture too large", f"{name}: a picture may be {most} at most; make it smaller")
    check_picture(name, part.path.read_bytes(), settings.pixels)
    part.path.rename(folder / part.path.name)
    return name, part.path.name


def _unpacked(archive: Path, folder: Path, kind: str, settings: ServeSettings) -> str:
    """Unpack an archive and look at what it holds; the names of its classes."""
    limits = ArchiveLimits(settings.teach_pictures, settings.teach_bytes, settings.upload_bytes)
    try:
        unpack(archive, folder, limits)
        if (found := kind_of(folder).name) != kind:
            raise DataError(f"this state learns {kind}, but the archive is for {found}")
        classes = KINDS[kind].read(str(folder)).classes
    except DataError as error:
        words = str(error).replace(LAYOUT, "pack a folder for each class, named like it").replace("FOLDER/", "")
        for there, said in ((f"{folder}/", ""), (f"{folder}: ", "the archive "), (str(folder), "the archive")):
            words = words.replace(there, said)
        raise Problem(422, "Archive refused", words) from error
    for label in classes:
        _name(label, "class")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES:
            check_picture(shown(path.relative_to(folder).as_posix()), path.read_bytes(), settings.pixels)
    return ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")


def _name(text: str, kind: str) -> str:
    text = text.strip()
    if len(text) > MOST_NAME:
        raise Problem(422, "Name refused", f"the name of a {kind} may have {MOST_NAME} characters, got {len(text):,}")
    try:
        return class_name(text, "the form", kind)
    except DataError as error:
        raise Problem(422, "Name refused", str(error)) from error


def _training(fields: dict[str, str]) -> dict[str, Any]:
    text = fields.get("epochs", "").strip()
    if not text:
        return {}
    if not (text.isdecimal() and text.isascii() and 1 <= int(text[:9]) <= MOST_EPOCHS):
        raise Problem(422, "Not understood", f"epochs must be a whole number from 1 to {MOST_EPOCHS:,}")
    return {"epochs": int(text)}


def _undo(
    settings: ServeSettings, jobs: Jobs, serving: Serving, seen: tuple[str, str | None] | None = None
) -> dict[str, str]:
    try:
        with jobs.quiet():
            state = State.open(settings.state, whole=False)
            record = state.version.record
            half = state.training.half_learned(record["tasks"])
            if seen not in (None, (state.version.id, half)):
                raise Problem(409, "The state has changed", "it is no longer what was shown; look again, then undo")
            if half is None and record.get("parent") is None:
                raise Problem(409, "Nothing to undo", "nothing was learned before this version; there is no step back")
            version = take_back(state)
            serving.keep_up()
    except Busy as error:
        raise Problem(409, "Something is being learned", str(error), headers=_RETRY) from error
    dropped = f"round {half!r}, which was half learned, has been dropped; nothing else has changed"
    return {"version": version.id, "note": str(version.record["note"]) if half is None else dropped}


def _full() -> Problem:
    return Problem(429, "Too many jobs", "as many jobs wait as may; try again when one is done", headers=_RETRY)
