"""Two processes of one machine read the same pictures: one decodes, both see all, and nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from meeting import Meeting

from sapwood.data.mask_store import MaskStore
from sapwood.data.masks import read_masks
from sapwood.data.sources import read_data
from sapwood.data.store import PictureStore
from sapwood.errors import DataError, SapwoodError
from sapwood.world.machine import first_of_machine

Meet = Callable[[], Meeting]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files would be."""
    (tmp_path / "space").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "space"))
    return tmp_path / "space"


def digest(store: Any) -> str:
    found = hashlib.sha256(repr((store.sha256, store.bad, store.pictures.labels)).encode())
    for index in range(len(store)):
        found.update(repr(store.size(index)).encode() + store[index].tobytes())
        if isinstance(store, MaskStore):
            found.update(store.mask(index).tobytes() + store.counts[index].tobytes())
    return found.hexdigest()


def test_each_picture_is_decoded_once_in_all(
    meeting: Meet,
    place: Path,
    decoded: list[str],
    picture_folder: Callable[..., Path],
    mask_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pictures = read_data(picture_folder(["ant", "bee"], 5))
    masks = read_masks(mask_folder(["road", "car"], 4))
    Path(pictures[2].name).write_bytes(b"")
    options: dict[str, Any] = {"skip_bad": True, "workers": 2}

    def stores(share: Any) -> list[Any]:
        return [
            PictureStore(pictures, 24, share=share, **options),
            PictureStore(pictures, 24, limit=24 * 24 * 3 * 6, share=share, budget=0, **options),
            MaskStore(masks, 20, share=share, **options),
        ]

    def work(rank: int) -> dict[str, Any]:
        made, reads = stores(first_of_machine), len(decoded)
        left = len(list(place.iterdir()))
        return {"reads": reads, "left": left, "anew": [each.anew for each in made], "seen": list(map(digest, made))}

    first, second = meeting().values(2, work)
    alone = stores(None)
    assert first["seen"] == second["seen"] == list(map(digest, alone))
    assert (first["reads"], second["reads"]) == (24, 0)
    assert first["anew"] == second["anew"] == [each.anew for each in alone] == [0, 3, 0]
    assert first["left"] == second["left"] == 0


def test_what_is_wrong_is_the_same_line_in_both(
    meeting: Meet, picture_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = picture_folder(["ant", "bee"], 3)
    good = read_data(folder)
    (folder / "bee" / "001.png").write_text("text")
    bad = read_data(folder)

    def line(make: Callable[[], Any]) -> str:
        with pytest.raises(SapwoodError) as caught:
            make()
        return f"{type(caught.value).__name__}: {caught.value}"

    def wrong() -> Any:
        raise DataError("wrong")

    def work(rank: int) -> list[str]:
        found = [line(lambda: PictureStore(bad, 24, share=first_of_machine))]
        found.append(line(lambda: first_of_machine(wrong)))
        given = good if rank == 0 else good.subset(range(4))
        if rank:
            found.append(line(lambda: PictureStore(given, 24, share=first_of_machine, skip_bad=True)))
            first_of_machine(lambda: None)
        else:
            found.append(str(PictureStore(given, 24, share=first_of_machine, skip_bad=True).anew))
        monkeypatch.setattr(tempfile, "mkstemp", lambda **names: (os.open("/dev/full", os.O_RDWR), str(tmp_path / "x")))
        return [*found, line(lambda: PictureStore(good, 24, share=first_of_machine, skip_bad=True))]

    first, second = meeting().values(2, work)
    assert first[0] == second[0]
    assert first[0].startswith("DataError: 1 of 6 pictures cannot be read: ")
    assert first[1] == second[1] == "DataError: wrong"
    assert second[2].startswith("DataError: this process was given 4 pictures, the first of its machine 6; ")
    assert first[3] == second[3]
    assert first[3].startswith("SapwoodError: no space left on ")


def test_each_machine_s_first_process_does_it(meeting: Meet, tmp_path: Path) -> None:
    def fails(rank: int) -> Any:
        if rank:
            raise DataError("of the second")
        return 7

    def work(rank: int) -> list[Any]:
        found: list[Any] = [first_of_machine(lambda: {"rank": rank, "text": "ä" * (1 + 9 * rank)})]
        with pytest.raises(DataError, match="of the second"):
            first_of_machine(lambda: fails(rank))
        return found

    met = meeting()
    met.start(2, work, machines=2)
    first, second = met.told()
    assert first == {"value": [{"rank": 0, "text": "ä"}]}
    assert second == {"value": [{"rank": 1, "text": "ä" * 10}]}


def test_killed_processes_leave_no_file(
    meeting: Meet, place: Path, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pictures = read_data(picture_folder(["ant", "bee"], 5))
    signs = tmp_path / "signs"
    signs.mkdir()

    def stopping(done: int, total: int) -> None:
        if done == 7:  # some lie in the file by now
            (signs / "decoding").touch()
            time.sleep(60)

    def work(rank: int) -> None:
        PictureStore(pictures, 24, share=first_of_machine)
        (signs / f"read {rank}").touch()
        PictureStore(pictures, 24, workers=1, share=first_of_machine, progress=stopping)

    children = meeting().start(2, work)
    deadline = time.monotonic() + 60
    while len(list(signs.iterdir())) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held = [os.readlink(each) for each in Path(f"/proc/{children[0]}/fd").iterdir()]
    assert any(str(place) in each for each in held), "it is written there"
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not list(place.iterdir())
