"""Hidden states on disk: bit for bit what was computed, or nothing at all."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sapwood import hidden_cache
from sapwood.hidden_cache import HiddenCache

WHAT = {"backbone": "ab" * 32, "blocks": 8}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def numbers(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_was_written(dtype: torch.dtype, folder: Path) -> None:
    cache = HiddenCache(WHAT, (5, 4), dtype)
    assert "one" not in cache
    assert cache.get("one") is None
    cache.put("one", numbers(dtype=dtype))
    again = HiddenCache(WHAT, (5, 4), dtype)
    assert "one" in again
    found = again.get("one")
    assert found is not None
    assert found.dtype is dtype
    assert torch.equal(found, numbers(dtype=dtype))
    assert [path.stat().st_size for path in files(folder)] == [cache.bytes_each] == [16 + 20 * dtype.itemsize]


def test_everything_it_depends_on_tells_apart() -> None:
    cache = HiddenCache(WHAT, (5, 4), torch.float32)
    cache.put("one", numbers())
    others = [({**WHAT, "blocks": 7}, (5, 4)), ({**WHAT, "backbone": "cd" * 32}, (5, 4)), (WHAT, (4, 5))]
    assert all(HiddenCache(what, shape, torch.float32).get("one") is None for what, shape in others)
    assert cache.get("two") is None


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "another's"])
def test_damage_is_as_if_it_were_not_there(harm: str, folder: Path) -> None:
    cache = HiddenCache(WHAT, (5, 4), torch.float32)
    cache.put("one", numbers())
    [path] = files(folder)
    content = path.read_bytes()
    if harm == "another's":
        cache.put("two", numbers(2))
        [other] = [each for each in files(folder) if each != path]
        content = other.read_bytes()
    elif harm == "flipped":
        content = content[:-1] + bytes([content[-1] ^ 1])
    else:
        content = content[:-3] if harm == "cut" else b""
    path.write_bytes(content)
    assert cache.get("one") is None
    cache.put("one", numbers())
    found = cache.get("one")
    assert found is not None
    assert torch.equal(found, numbers())


def write() -> None:
    cache = HiddenCache({"one": 1}, (200, 50), torch.float32)
    for _ in range(40):
        for number in range(5):
            cache.put(str(number), torch.full((200, 50), float(number)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes here are forked")
def test_two_writers_and_a_reader(folder: Path) -> None:
    cache = HiddenCache({"one": 1}, (200, 50), torch.float32)
    writers = [multiprocessing.get_context("fork").Process(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers) or not seen:
        for number in range(5):
            there, found = str(number) in cache, cache.get(str(number))
            assert found is not None or not there  # never half a file, and none that goes away again
            if found is not None:
                assert torch.equal(found, torch.full((200, 50), float(number)))
                seen += 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(files(folder)) == 5  # nothing is left aside


@pytest.fixture
def small_files() -> Iterator[None]:
    resource = pytest.importorskip("resource", reason="this system has no limits on file sizes")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_cannot_be_written_leaves_nothing(small_files: None, folder: Path) -> None:
    cache = HiddenCache(WHAT, (5, 4), torch.float32)
    with pytest.raises(OSError, match="File too large"):
        cache.put("one", numbers())
    assert files(folder) == []


def test_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = HiddenCache(WHAT, (5, 4), torch.float32)
    free = 20 * cache.bytes_each
    usage = type("usage", (), {"free": free})
    monkeypatch.setattr(hidden_cache.shutil, "disk_usage", lambda path: usage)
    assert cache.room_for(9)
    assert not cache.room_for(10)
    cache.put("one", numbers())
    cache.remove("one")
    cache.remove("one")
    assert "one" not in cache
    assert os.listdir(cache.folder)  # folders stay


@pytest.fixture
def disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``disk(1000)``: of so many bytes, of which the cache's own files take their part."""

    def holds(size: int) -> None:
        def usage(path: Path) -> object:
            return type("usage", (), {"free": size - sum(path.stat().st_size for path in files(folder))})

        monkeypatch.setattr(hidden_cache.shutil, "disk_usage", usage)

    return holds


def kept(blocks: int, days: float) -> HiddenCache:
    """Four views, 384 bytes, last used so long ago."""
    cache = HiddenCache({"blocks": blocks}, (5, 4), torch.float32)
    for number in range(4):
        cache.put(str(number), numbers())
    unused_for(cache, days)
    return cache


def unused_for(cache: HiddenCache, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(cache.folder, (then, then))


def there(*caches: HiddenCache) -> list[bool]:
    return [cache.get("0") is not None for cache in caches]


def test_the_longest_unused_settings_make_room(disk: Callable[[int], None]) -> None:
    last, first, between = kept(1, 2), kept(2, 9), kept(3, 4)
    own = HiddenCache(WHAT, (5, 4), torch.float32)
    own.put("0", numbers())
    unused_for(own, 99)
    disk(1750)  # 502 bytes are free now, 886 without the first, 1270 without two
    assert own.make_room(2) == 0  # there is room
    assert own.make_room(6) == 2 * 384  # for 576 bytes, less than half of 1270
    assert there(first, between, last, own) == [False, False, True, True]
    assert own.make_room(6) == 0
    assert set(os.listdir(own.folder.parent)) == {own.folder.name, last.folder.name}  # nothing is left aside


def test_what_was_used_within_a_day_stays(disk: Callable[[int], None]) -> None:
    recent, again, old = kept(1, 0.9), kept(2, 9), kept(3, 9)
    again.use()
    own = HiddenCache(WHAT, (5, 4), torch.float32)
    own.use()
    disk(1152 + 384)
    assert own.make_room(6) == 0  # without the old one 768 bytes would be free, too few: it stays too
    assert there(recent, again, old) == [True, True, True]
    assert own.make_room(3) == 384
    assert there(recent, again, old) == [True, True, False]


def test_what_a_kill_left_half_removed_goes_first(disk: Callable[[int], None]) -> None:
    half, old = kept(1, 0), kept(2, 9)
    half.folder.rename(half.folder.with_name("." + half.folder.name))
    own = HiddenCache(WHAT, (5, 4), torch.float32)
    disk(768 + 100)
    assert own.make_room(2) == 384
    assert there(half, old) == [False, True]
    assert os.listdir(own.folder.parent) == [old.folder.name]


def test_nothing_asks_for_no_room(disk: Callable[[int], None]) -> None:
    disk(0)
    assert HiddenCache(WHAT, (5, 4), torch.float32).room_for(0)
