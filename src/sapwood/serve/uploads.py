"""Request bodies, read piece by piece: counted as they come, refused early, kept in a folder that goes away."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from sapwood.serve.problems import Problem
from sapwood.serve.shelf import Shelf

_MOST_FIELD = 64 * 1024
_MOST_FIELDS = 100
"""Parts of a form that are no files."""
_MOST_NAME = 4096
_LEAST_RATE = 1024
"""Bytes a second of a body, after a while: who dribbles may not keep others out for hours."""


@dataclass(frozen=True)
class Part:
    """One file of an upload.

    Attributes:
        field: name of the form's field.
        name: of the file as the client has it; never a path here.
        path: where its bytes lie.
        size: bytes.
    """

    field: str
    name: str
    path: Path
    size: int


@dataclass
class Upload:
    """What came with a request. Whoever takes it calls ``remove`` in the end.

    Attributes:
        folder: on the shelf, of this upload alone.
        parts: the files.
        fields: the other fields of the form; of one that came twice the last.
    """

    folder: Path
    parts: list[Part] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> list[Part]:
        """The files of one field."""
        return [part for part in self.parts if part.field == name]

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


async def read_body(request: Request, most_bytes: int, seconds: float) -> bytes:
    """A whole body of at most so many bytes.

    Raises:
        Problem: 408, 413.
    """
    return b"".join([piece async for piece in pieces(request, most_bytes, seconds)])


async def pieces(request: Request, most_bytes: int, seconds: float) -> AsyncIterator[bytes]:
    """A body as it comes.

    Args:
        request: whose body was not read yet.
        most_bytes: of the whole body.
        seconds: that one piece may take to come, and that all may take that is slower than 1 KiB/s.

    Raises:
        Problem: 413 as soon as it is known that there is more; 408 when nothing comes, or next to nothing.
        ClientDisconnect: the client has gone.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > most_bytes:
        raise _too_large(most_bytes)
    seen, stream, started = 0, request.stream(), time.monotonic()
    while True:
        try:
            piece = await asyncio.wait_for(anext(stream), seconds)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Problem(408, "Upload stalled", f"nothing came for {seconds:g} s; send it again") from None
        seen += len(piece)
        if seen > most_bytes:
            raise _too_large(most_bytes)
        if time.monotonic() - started > seconds + seen / _LEAST_RATE:
            raise Problem(408, "Upload too slow", f"{seen:,} bytes came so far; send it over a faster connection")
        yield piece


def no_room(error: OSError) -> Problem:
    """507, for a disk that takes no more."""
    return Problem(507, "No room", f"the upload cannot be stored ({error.strerror}); try again later")


def _too_large(most_bytes: int) -> Problem:
    return Problem(413, "Upload too large", f"a request may be {most_bytes / 2**20:g} MiB at most; send less at a time")


async def read_upload(
    request: Request,
    shelf: Shelf,
    *,
    most_bytes: int,
    most_files: int,
    files: Collection[str],
    fields: Collection[str] = (),
    seconds: float = 30.0,
) -> Upload:
    """Stream a ``multipart/form-data`` body into a folder of its own.

    Args:
        request: whose body was not read yet.
        shelf: where the folder is made.
        most_bytes: of the whole body.
        most_files: of all fields together.
        files: names of fields that are files.
        fields: names of other fields.
        seconds: that one piece may take to come.

    Raises:
        Problem: 400 not a form, cut short, or an unknown field; 408; 413 too many bytes, files or parts; 415; 507.
            Nothing is left.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Problem(415, "Not a form", "send multipart/form-data, a picture in a part of its own")
    try:
        upload = Upload(await asyncio.to_thread(shelf.make))
    except OSError as error:
        raise no_room(error) from error
    reader = _Reader(upload, most_files, frozenset(files), frozenset(fields))
    try:
        await _fill(request, boundary, reader, most_bytes, seconds)
    except BaseException:
        reader.close()
        with suppress(RuntimeError):  # the event loop is going down
            await asyncio.shield(asyncio.to_thread(upload.remove))
        raise
    return upload


async def _fill(request: Request, boundary: bytes, reader: _Reader, most_bytes: int, seconds: float) -> None:
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        async for piece in pieces(request, most_bytes, seconds):
            if piece:
                await asyncio.to_thread(parser.write, piece)  # it writes to disk
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "Not a form", f"the body is not multipart/form-data ({error})") from error
    except OSError as error:
        raise no_room(error) from error
    if not reader.ended:
        raise Problem(400, "Upload cut short", "the form ends before its last boundary; send it again")


class _Reader:
    """Turns what the parser meets into files and fields."""

    def __init__(self, upload: Upload, most_files: int, files: frozenset[str], fields: frozenset[str]) -> None:
        self.upload, self.most_files, self.files, self.fields = upload, most_files, files, fields
        self.ended = False
        self._parts = 0
        self._header, self._value = b"", b""
        self._disposition = b""
        self._name, self._filename = "", ""
        self._file: BinaryIO | None = None
        self._size = 0
        self._text = bytearray()

    def callbacks(self) -> dict[str, object]:
        """What the parser calls."""
        return {
            name: getattr(self, name)
            for name in (
                "on_part_begin",
                "on_part_data",
                "on_part_end",
                "on_header_field",
                "on_header_value",
                "on_header_end",
                "on_headers_finished",
                "on_end",
            )
        }

    def on_part_begin(self) -> None:
        """A part starts."""
        self._parts += 1
        if self._parts > self.most_files + _MOST_FIELDS:  # each costs time, however small it is
            raise Problem(413, "Too many parts", "the form has far more parts than it may have files")
        self._disposition, self._size = b"", 0
        self._text.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of its value."""
        self._value += data[start:end]

    def on_header_end(self) -> None:
        """A header is complete."""
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def on_headers_finished(self) -> None:
        """What kind of part it is, is known."""
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._filename = options.get(b"filename", b"").decode("utf-8", "replace")[:_MOST_NAME]
        if self._name in self.files:
            if len(self.upload.parts) == self.most_files:
                raise Problem(
                    413, "Too many files", f"a request may hold {self.most_files} at most; send fewer at a time"
                )
            self._file = (self.upload.folder / f"{len(self.upload.parts):06d}").open("wb")
        elif self._name not in self.fields:
            known = ", ".join(sorted(self.files | self.fields))
            raise Problem(400, "Unknown field", f"a part is named {self._name[:100]!r}; known are: {known}")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """A piece of a part."""
        if self._file is not None:
            self._file.write(data[start:end])
            self._size += end - start
            return
        self._text += data[start:end]
        if len(self._text) > _MOST_FIELD:
            raise Problem(413, "Field too long", f"field {self._name!r} may be {_MOST_FIELD // 1024} KiB at most")

    def on_part_end(self) -> None:
        """A part is complete."""
        if self._file is None:
            try:
                self.upload.fields[self._name] = self._text.decode("utf-8")
            except UnicodeDecodeError:
                raise Problem(422, "Not understood", f"field {self._name!r} is not UTF-8; send it so") from None
            return
        path = Path(self._file.name)
        self.close()
        self.upload.parts.append(Part(self._name, self._filename or path.name, path, self._size))

    def on_end(self) -> None:
        """The form is complete."""
        self.ended = True

    def close(self) -> None:
        """Leave no file open."""
        if self._file is not None:
            self._file.close()
            self._file = None
