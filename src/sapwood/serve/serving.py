"""The version that answers, and its switch to the next one while predictions go on."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sapwood.data.names import shown
from sapwood.data.palette import palette
from sapwood.data.pictures import Picture, Pictures
from sapwood.errors import SapwoodError
from sapwood.evaluation import is_calibrated
from sapwood.learner import Learner
from sapwood.mask_evaluation import MaskPrediction
from sapwood.serve.problems import Problem
from sapwood.serve.settings import ServeSettings
from sapwood.serve.telemetry import Metrics, note
from sapwood.state.records import read_pointer

_COLOURS = np.array(palette(), np.uint8).tobytes()
_EVERY = 1.0
"""Seconds between two looks at the state's pointer."""


@dataclass(frozen=True)
class Snapshot:
    """One version, opened.

    Attributes:
        learner: of that version; nobody teaches it.
        version: its id.
    """

    learner: Learner
    version: str

    @property
    def masks(self) -> bool:
        """Whether it draws masks instead of naming pictures."""
        return self.learner.kind.name == "segmentation"


@dataclass(frozen=True)
class Question:
    """Pictures of one request.

    Attributes:
        pictures: uint8 [H, W, 3] each.
        top: classes to list.
        tile: of masks: cut large pictures into views instead of shrinking them to one.
    """

    pictures: Sequence[np.ndarray]
    top: int
    tile: bool = False


@dataclass(frozen=True)
class Answer:
    """What a version says of the pictures of one request.

    Attributes:
        version: that answered.
        calibrated: as in ``Prediction``; None of masks.
        predictions: a ``Prediction`` or ``MaskPrediction`` each.
    """

    version: str
    calibrated: bool | None
    predictions: Sequence[Any]


class Serving:
    """Holds the opened version; replacing it is one assignment, so that readers need no lock.

    Args:
        settings: of the server.
        metrics: told of each switch.

    Raises:
        StateError: there is no state, or it is damaged.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._opening = threading.Lock()
        self._loaded = False
        self._fault = ""
        self._snapshot = _snapshot(Learner.open(settings.state, device=settings.device))
        self._told(self._snapshot)

    def current(self) -> Snapshot:
        """The version that answers now."""
        return self._snapshot

    def check_ready(self) -> None:
        """Nothing, once the network is in memory.

        Raises:
            Problem: 503, it is being loaded, or cannot be; ``loading`` says so to programs.
        """
        if self._loaded:
            return
        detail, again = "the network is being loaded; try again in a moment", "1"
        if self._fault:
            detail, again = f"the network cannot be loaded ({shown(self._fault)}); the server tries on", "10"
        raise Problem(503, "Not ready", detail, headers={"Retry-After": again}, extra={"loading": not self._fault})

    def load(self) -> Snapshot:
        """The version that answers, with its network in memory; in a thread that may wait."""
        if not self._loaded:
            with self._opening:
                if not self._loaded:
                    self._snapshot = _filled(self._snapshot.learner)
                    self._loaded = True
                    self._told(self._snapshot)
        return self._snapshot

    def refresh(self) -> Snapshot:
        """Take up the version the state is at now; the old one answers until the new network is in memory."""
        self.load()
        if read_pointer(self.settings.state) != self._snapshot.version:
            with self._opening:
                if read_pointer(self.settings.state) != self._snapshot.version:
                    fresh = _filled(self._snapshot.learner.reopened())
                    self._snapshot = fresh  # predictions under way hold the old one until they are done
                    self._told(fresh)
                    self.metrics.switches.inc()
                    note("version", version=fresh.version)
        return self._snapshot

    def keep_up(self) -> None:
        """``refresh``; what goes wrong is logged, and the version before goes on answering until it goes well."""
        try:
            self.refresh()
            self._fault = ""
        except Exception as error:  # of whatever kind: no later version would be taken up if this ended
            told = str(error) if isinstance(error, SapwoodError | OSError) else f"{type(error).__name__}: {error}"
            if told != self._fault:
                self._fault = told
                note("the state cannot be read", error=told)

    async def follow(self) -> None:
        """Keep up with the state for good."""
        while True:
            await asyncio.to_thread(self.keep_up)
            await asyncio.sleep(_EVERY)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One pass for the pictures of several requests; no answer depends on another picture."""
        snapshot = self.load()
        if not snapshot.learner.classes_:
            raise Problem(409, "Nothing learned yet", "this state has learned nothing yet; teach it a class first")
        found = {tile: iter(_predicted(snapshot, questions, tile)) for tile in {each.tile for each in questions}}
        calibrated = None if snapshot.masks else is_calibrated(snapshot.learner.network)
        return [
            Answer(snapshot.version, calibrated, [next(found[question.tile]) for _ in question.pictures])
            for question in questions
        ]

    def _told(self, snapshot: Snapshot) -> None:
        record = snapshot.learner.record
        self.metrics.version.info({"version": snapshot.version, "kind": record["kind"], "method": record["method"]})


def _snapshot(learner: Learner) -> Snapshot:
    return Snapshot(learner, learner.state.version.id)


def _filled(learner: Learner) -> Snapshot:
    _ = learner.network
    return _snapshot(learner)  # the learner may have moved on where its version was pruned


def _predicted(snapshot: Snapshot, questions: Sequence[Question], tile: bool) -> list[Any]:
    """Of the pictures of those questions that want tiles, or of those that do not."""
    asked = [question for question in questions if question.tile == tile]
    pictures = Pictures(
        Picture(f"picture {number}", pixels)
        for number, pixels in enumerate(pixels for question in asked for pixels in question.pictures)
    )
    return snapshot.learner.predict(pictures, top=max(question.top for question in asked), tile=tile)


def masked(found: MaskPrediction) -> dict[str, Any]:
    """Size, shares and palette PNG (as bytes) of a mask."""
    image = Image.fromarray(np.ascontiguousarray(found.mask))
    image.putpalette(_COLOURS)
    stored = io.BytesIO()
    image.save(stored, format="PNG")
    return {"size": list(found.mask.shape), "classes": found.shares, "mask": stored.getvalue()}
