"""Decoded pictures at working size: each file is read and decoded once, or at every look where there is no room."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from sapwood.data.decode import DEFAULT_PIXEL_LIMIT, decode_with_sha256
from sapwood.data.kept import KeptPictures, Look, Share, refuse_bad
from sapwood.data.pictures import Picture, Pictures

BUDGET = 512 * 2**20
"""Bytes of decoded pixels kept in memory."""


class PictureStore(KeptPictures[Pictures]):
    """Decoded pictures, uint8 [H, W, 3] each, in memory up to a budget and on disk beyond it.

    Args:
        pictures: what to decode.
        shorter: shorter side in pixels to which larger pictures are reduced.
        skip_bad: leave out pictures that cannot be read (they are listed in ``bad``) instead of raising.
        pixel_limit: see ``decode``.
        workers: decoding threads; 0 takes one per processor, at most eight.
        progress: called with (done, total) after each picture, from the calling thread.
        budget: bytes kept in memory; what is beyond goes to a temporary file.
        limit: bytes kept in that file; a picture beyond it is read and checked like all, and decoded anew at every
            look. None: half of what is free on its disk now, at most 64 GiB.
        share: where processes learn together: the first of each machine decodes, the others read its file.

    Attributes:
        pictures: the readable ones.
        bad: (name, reason) of the others.
        sha256: of each readable picture's bytes.
        anew: how many are decoded at every look.

    Raises:
        DataError: pictures cannot be read and ``skip_bad`` is off, or a class has no readable picture; at a look, that
            a picture is no longer what it was.
    """

    def __init__(
        self,
        pictures: Pictures,
        shorter: int,
        *,
        skip_bad: bool = False,
        pixel_limit: int = DEFAULT_PIXEL_LIMIT,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
        budget: int = BUDGET,
        limit: int | None = None,
        share: Share | None = None,
    ) -> None:
        super().__init__(
            pictures,
            partial(_look, shorter=shorter, pixel_limit=pixel_limit),
            names=lambda picture: (picture.name,),
            workers=workers,
            progress=progress,
            budget=budget,
            limit=limit,
            share=share,
        )
        refuse_bad(pictures, self.pictures, self.bad, skip_bad)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._arrays(index)[0]

    @property
    def picture_sha256(self) -> tuple[str, ...]:
        """Of each readable picture's bytes, as of a ``MaskStore``."""
        return self.sha256


def _look(picture: Picture, *, shorter: int, pixel_limit: int) -> Look:
    decoded = decode_with_sha256(picture, shorter=shorter, pixel_limit=pixel_limit)
    return Look((decoded.pixels,), bytes.fromhex(decoded.sha256))
