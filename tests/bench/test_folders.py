"""What may stand in one folder of a bench: equal pictures, weights and settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from sapwood.bench.plan import Plan
from sapwood.bench.rows import Run
from sapwood.bench.summary import summarise
from sapwood.errors import DataError

from .helpers import Result, row, rows_in

NCM = ("--methods", "ncm", "--no-controls")


def test_rows_of_different_pictures_do_not_stand_in_one_table() -> None:
    said = r"rows seq-lora \(pretrained, seed 0\) and ncm \(pretrained, seed {}\) come from different pictures"
    with pytest.raises(DataError, match=said.format(0)):
        summarise([row("seq-lora"), row("ncm", data_sha256="other")])
    with pytest.raises(DataError, match=said.format(1)):  # each seed has an order of its own, and so another data sum
        summarise([row("seq-lora", pictures_sha256="a"), row("ncm", 1, data_sha256="b", pictures_sha256="b")])
    whole = [row("seq-lora", pictures_sha256="a"), row("seq-lora", 1, data_sha256="b", pictures_sha256="a")]
    assert [line.seeds for line in summarise([*whole, row("ncm")])] == [(0, 1), (0,)]  # an earlier release's says less


def test_rows_of_different_weights_of_one_name_do_not_stand_in_one_table() -> None:
    known = {"backbone": "mine", "weights_sha256": "a"}
    with pytest.raises(DataError, match="come from different weights of one name; remove the files of one in rows/"):
        summarise([row("ncm", **known), row("ncm", 1, **{**known, "weights_sha256": "b"})])
    summarise([row("ncm", **known), row("ncm", weights="random", backbone="random:mine", weights_sha256="b")])


def test_pictures_have_one_sum_for_every_order(picture_folder: Callable[..., Path]) -> None:
    benchmark = f"own:{picture_folder(['ant', 'bee', 'cat', 'dog'], 10)}:2"
    streams = [Plan(benchmark, ("ncm",)).stream(seed) for seed in (0, 1)]
    assert streams[0].classes != streams[1].classes
    assert len({stream.sha256() for stream in streams}) == 2
    assert len({stream.pictures_sha256() for stream in streams}) == 1
    held_out = Plan(benchmark, ("ncm",), held_out=0.5).stream(0)
    assert held_out.pictures_sha256() != streams[0].pictures_sha256()  # other pictures are measured


def test_pictures_that_changed_are_found_before_anything_is_learned(
    own: str, bench: Callable[..., Result], tmp_path: Path
) -> None:
    pictures, out = shutil.copytree(own.split(":")[1], tmp_path / "pictures"), tmp_path / "out"
    benchmark = f"own:{pictures}:2"
    assert bench(out, *NCM, "--seeds", "1", benchmark=benchmark).code == 0
    first = sorted((pictures / "ant").iterdir())[0]
    shutil.copy(sorted((pictures / "bee").iterdir())[0], first)
    for more in (("--seeds", "2"), ("--seeds", "1", "--methods", "ridge")):
        refused = bench(out, *NCM, *more, benchmark=benchmark)
        assert refused.code == 2
        assert f"error: {out}/rows/ncm-random-seed0.json comes from other pictures than " in refused.err
        assert rows_in(out).keys() == {"ncm-random-seed0"}
    assert bench(out, *NCM, "--seeds", "1", benchmark=benchmark).code == 0  # what is there may be looked at


def test_a_bench_that_has_no_row_yet_holds_its_folder(own: str, bench: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = ("--seeds", "1", "--set", "training.batch_size=4")
    assert bench(out, *NCM, *options).code == 0
    shutil.rmtree(out / "rows")
    with FileLock(out / "bench.running.lock"):  # as one holds it that is at work
        refused = bench(out, *NCM, "--seeds", "1", "--batch-size", "16")
        assert refused.code == 2
        assert f"error: --out {out} holds rows of settings=" in refused.err
        assert bench(out, *NCM, "--seeds", "1", "--batch-size", "4").code == 0  # the same, given another way
    request = json.loads((out / "bench.json").read_text())
    request["settings"]["training"]["batch_size"] = "4"  # as an earlier release wrote it
    (out / "bench.json").write_text(json.dumps(request))
    (out / "trained").mkdir()
    with FileLock(out / "bench.running.lock"):
        assert bench(out, *NCM, *options).code == 0
        assert (out / "trained").is_dir()  # the other bench may need it
    assert bench(out, *NCM, *options).code == 0
    assert not (out / "trained").exists()
    shutil.rmtree(out / "rows")
    assert bench(out, *NCM, "--seeds", "1", "--batch-size", "16").code == 0
    (out / "bench.json").unlink()
    refused = bench(out, *NCM, "--seeds", "1", "--batch-size", "16")
    assert refused.code == 2
    assert f"error: {out}/bench.json is gone, which says what the rows beside it are; name another --out" in refused.err


def test_settings_are_what_they_mean(own: str) -> None:
    said = Plan(own, ("inflora",), settings={"adapter": {"expected_tasks": "none", "rank": "8"}})
    assert said.settings == {"adapter": {"expected_tasks": None, "rank": 8}}
    assert next(iter(said.rows())).startswith("inflora-")
    assert Run("inflora", "b", 0, 28, settings={"adapter": {"expected_tasks": 5}}).label == "inflora+T"
    assert json.loads(json.dumps(said.fingerprint())) == said.fingerprint()
