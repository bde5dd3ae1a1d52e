"""What is asked over HTTP: what pictures show, and what the state is."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from sapwood.data.palette import palette
from sapwood.serve.pictures import Gate, Room, checked_pixels, pass_count
from sapwood.serve.problems import Problem
from sapwood.serve.security import require_ask
from sapwood.serve.serving import Answer, Question, Serving, Snapshot, masked
from sapwood.serve.settings import ServeSettings
from sapwood.serve.telemetry import VERSION, Metrics
from sapwood.serve.uploads import read_body, read_upload
from sapwood.state.description import describe

_TOP = 5
_MOST_TOP = 1000
_HINT = "; of a data URL, send what follows the comma"
_TILE = "Masks: cut large pictures into views instead of shrinking them to one; it sees small things, and takes longer."
_FLAGS = {"": False, "false": False, "0": False, "true": True, "1": True, "on": True}
router = APIRouter(tags=["ask"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "tile": {"type": "boolean", "description": _TILE},
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
                        "top": {"type": "integer", "minimum": 1, "maximum": _MOST_TOP},
                        "tile": {"type": "boolean", "description": _TILE},
                    },
                }
            },
        },
    }
}


@dataclass(frozen=True)
class _Asked:
    """Pictures as (name, content of the file), and what is wanted of them."""

    named: Sequence[tuple[str, bytes]]
    top: int
    tile: bool


@router.post(
    "/v1/predict",
    dependencies=[Depends(require_ask)],
    openapi_extra=_BODY,
    summary="What one or more pictures show: classes with scores, or masks.",
)
async def predict(request: Request, top: Annotated[int, Query(ge=1, le=_MOST_TOP)] = _TOP) -> JSONResponse:
    """Name the class of each picture, or draw its mask; all pictures of a request are answered by one version."""
    app = request.app.state
    settings: ServeSettings = app.settings
    serving: Serving = app.serving
    serving.check_ready()  # before the upload
    gate: Gate = app.gate
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        asked = await _from_json(request, settings, top)
    else:
        asked = await _from_form(request, settings, top)
    request.state.pictures = len(asked.named)
    snapshot = serving.current()
    if asked.tile and not snapshot.masks:
        raise Problem(422, "Not understood", "tile is for masks, and this state names whole pictures; leave it out")
    with gate.room() as room:
        pixels = await _decoded(app.decoders, [content for _, content in asked.named], snapshot, settings, room)
        passes = pass_count(pixels, snapshot.learner.record, asked.tile, settings.queue)
        answer = await app.batcher.ask(Question(pixels, asked.top, asked.tile), passes, settings.timeout)
    content = await asyncio.to_thread(_content, [name for name, _ in asked.named], answer, asked.top, app.metrics)
    return JSONResponse(content, headers={VERSION: answer.version})


@router.get("/v1/state", dependencies=[Depends(require_ask)], summary="What the state has learned.")
async def state(request: Request) -> dict[str, Any]:
    """Classes, rounds, accuracy and costs of the version that answers; and the limits of this server."""
    settings: ServeSettings = request.app.state.settings
    snapshot = request.app.state.serving.current()
    found = describe(snapshot.learner.state.version)
    if snapshot.masks:
        found["palette"] = palette(max(1, len(found["classes"])))
    return found | {
        "read_only": settings.read_only,
        "needs_token": settings.needs_token(),
        "limits": settings.limits(),
    }


@router.get("/healthz", tags=["operate"], summary="Whether the server is alive.")
async def healthz() -> dict[str, str]:
    """Always, while it answers at all."""
    return {"status": "alive"}


@router.get("/readyz", tags=["operate"], summary="Whether the network is in memory.")
async def readyz(request: Request) -> dict[str, str]:
    """Ready for predictions; 503 until then."""
    serving: Serving = request.app.state.serving
    serving.check_ready()
    return {"status": "ready", "version": serving.current().version}


@router.get(
    "/metrics", tags=["operate"], dependencies=[Depends(require_ask)], summary="Counts in Prometheus' text format."
)
async def metrics(request: Request) -> Response:
    """Latency, queue, confidence, share of the unknown, version."""
    counts: Metrics = request.app.state.metrics
    return Response(counts.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _from_form(request: Request, settings: ServeSettings, top: int) -> _Asked:
    upload = await read_upload(
        request,
        request.app.state.shelf,
        most_bytes=settings.upload_bytes,
        most_files=settings.pictures,
        files=["image"],
        fields=["tile"],
        seconds=settings.timeout,
    )
    try:
        if not upload.parts:
            raise Problem(400, "No picture", "the form holds no part named 'image'")
        tile = _FLAGS.get(upload.fields.get("tile", "").strip().lower())
        if tile is None:
            raise Problem(422, "Not understood", "tile must be true or false")
        named = await asyncio.to_thread(lambda: [(part.name, part.path.read_bytes()) for part in upload.parts])
        return _Asked(named, top, tile)
    finally:
        await asyncio.to_thread(upload.remove)


async def _from_json(request: Request, settings: ServeSettings, top: int) -> _Asked:
    body = await read_body(request, settings.upload_bytes, settings.timeout)
    return await asyncio.to_thread(_parsed, body, settings.pictures, top)


def _parsed(body: bytes, most: int, top: int) -> _Asked:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "Not JSON", "the body is not JSON in UTF-8") from error
    images = given.get("images") if isinstance(given, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise Problem(400, "No picture", 'send {"images": ["BASE64", ...]}, a text for each picture')
    if len(images) > most:
        raise Problem(413, "Too many pictures", f"a request may hold {most}; send fewer at a time")
    wanted = given.get("top", top)
    if type(wanted) is not int or not 1 <= wanted <= _MOST_TOP:
        raise Problem(422, "Not understood", f"top must be a whole number from 1 to {_MOST_TOP}")
    tile = given.get("tile", False)
    if type(tile) is not bool:
        raise Problem(422, "Not understood", "tile must be true or false")
    named = []
    for number, image in enumerate(images):
        try:
            packed = "".join(image.split())  # many tools break the lines
            named.append((f"picture {number}", base64.b64decode(packed, validate=True)))
        except (binascii.Error, ValueError) as error:
            hint = _HINT if image.startswith("data:") else ""
            raise Problem(400, "Not base64", f"picture {number} is not base64{hint}") from error
    return _Asked(named, wanted, tile)


async def _decoded(
    decoders: ThreadPoolExecutor,
    contents: Sequence[bytes],
    snapshot: Snapshot,
    settings: ServeSettings,
    room: Room,
) -> list[np.ndarray]:
    loop, info = asyncio.get_running_loop(), snapshot.learner.record
    tasks = [
        loop.run_in_executor(decoders, checked_pixels, f"picture {number}", content, info, settings.pixels, room)
        for number, content in enumerate(contents)
    ]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def _content(names: Sequence[str], answer: Answer, top: int, counts: Metrics) -> dict[str, Any]:
    predictions: list[dict[str, Any]] = []
    for name, found in zip(names, answer.predictions, strict=True):
        if answer.calibrated is None:
            drawn = masked(found)
            predictions.append({"name": name, **drawn, "mask": base64.b64encode(drawn["mask"]).decode()})
            continue
        counts.confidence.observe(found.score)
        counts.predictions.labels({True: "yes", False: "no", None: "unsaid"}[found.known]).inc()
        listed = [{"class": label, "score": score} for label, score in found.top[:top]]
        predictions.append(
            {"name": name, "class": found.label, "score": found.score, "known": found.known, "top": listed}
        )
    return {"version": answer.version, "calibrated": answer.calibrated, "predictions": predictions}
