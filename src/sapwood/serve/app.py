"""The application: every part put together, and what starts and stops with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from sapwood import __version__
from sapwood.serve import asking, docs, pages, problems, teaching
from sapwood.serve.batching import Batcher
from sapwood.serve.pictures import Gate
from sapwood.serve.security import Guard
from sapwood.serve.serving import Answer, Question, Serving
from sapwood.serve.settings import ServeSettings
from sapwood.serve.shelf import Shelf
from sapwood.serve.telemetry import Frame, Metrics

_DECODERS = 4


def create_app(settings: ServeSettings) -> FastAPI:
    """An ASGI application that serves a state.

    Its ``state`` holds ``settings``, ``serving``, ``metrics``, ``batcher``, ``gate``, ``decoders`` and ``shelf``. What
    a router needs to start and stop stands in its ``lifespan``, inside this one's.

    Args:
        settings: where the state lies, who may ask and teach, and the limits.

    Raises:
        StateError: there is no state, or it is damaged.
    """
    metrics = Metrics()
    serving = Serving(settings, metrics)
    app = FastAPI(
        title="sapwood",
        version=__version__,
        summary="Ask a state what pictures show, and teach it new classes.",
        lifespan=_running,
        docs_url=None,  # both would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.settings, app.state.metrics, app.state.serving = settings, metrics, serving
    app.state.gate = Gate(settings.pixels)
    problems.install(app)
    for part in (asking, teaching, docs, pages):
        app.include_router(part.router)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Frame, metrics=metrics, version=lambda: serving.current().version, most=settings.connections)
    return app


@asynccontextmanager
async def _running(app: FastAPI) -> AsyncIterator[None]:
    settings: ServeSettings = app.state.settings
    serving: Serving = app.state.serving
    batcher: Batcher[Question, Answer] = Batcher(
        serving.answer, batch=settings.batch, window=settings.window, most=settings.queue, metrics=app.state.metrics
    )
    app.state.batcher = batcher
    app.state.shelf = await asyncio.to_thread(Shelf)
    app.state.decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
    batcher.start()
    following = asyncio.create_task(serving.follow())
    try:
        yield
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await batcher.stop()
        app.state.decoders.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(app.state.shelf.close)
