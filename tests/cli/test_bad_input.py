"""Bad input gets one clear line and exit code 2, and leaves no state behind, or the one there was as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from sapwood.errors import StateError
from sapwood.state import State

from .conftest import TINY, Run, World, tree


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


def break_file(content: bytes | None) -> Callable[[Path], None]:
    """Write ``content`` over a picture, None: cut it in half."""

    def spoil(folder: Path) -> None:
        picture = folder / "bee" / "00.jpg"
        image = Image.open(folder / "bee" / "000.png").convert("RGB").resize((200, 200))
        image.save(picture)
        picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2] if content is None else content)

    return spoil


def too_large(folder: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(folder / "bee" / "huge.png")


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such folder": (shutil.rmtree, "no such file or folder: "),
    "no class folders": (lambda folder: [shutil.rmtree(each) for each in folder.iterdir()], "no class folders"),
    "empty class folder": (lambda folder: (folder / "cow").mkdir(), "empty class folder: 'cow'"),
    "truncated": (break_file(None), "1 of 13 pictures cannot be read"),
    "zero bytes": (break_file(b""), "the file is empty"),
    "a text file": (break_file(b"hello, I am no picture\n"), "00.jpg"),
    "pixel limit": (too_large, "pixels"),
    "letter case": (lambda folder: shutil.copytree(folder / "bee", folder / "Bee"), "letter case"),
    "control character": (lambda folder: rename(folder, "bee", "b\x07e"), "control character"),
    "separator": (lambda folder: rename(folder, "bee", "b\\ee"), "path separator"),
}


@pytest.mark.parametrize("spoiled", BAD_FOLDERS)
def test_bad_folders(
    sapwood: Run, tmp_path: Path, world: World, picture_folder: Callable[..., Path], spoiled: str
) -> None:
    spoil, told = BAD_FOLDERS[spoiled]
    folder = picture_folder(["ant", "bee"], 6)
    spoil(folder)
    before = tree(world.state)
    for state in (tmp_path / "new", world.state):
        options = TINY if state != world.state else ()
        done = sapwood("learn", state, folder, *options)
        assert (done.code, done.out) == (2, "")
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert errors[0] == done.err.splitlines()[-1]
        assert told in errors[0]
    assert not (tmp_path / "new").exists()
    assert tree(world.state) == before


def test_skip_bad_leaves_the_unreadable_out(sapwood: Run, tmp_path: Path, picture_folder: Callable[..., Path]) -> None:
    folder = picture_folder(["ant", "bee"], 6)
    break_file(b"")(folder)
    done = sapwood("learn", tmp_path / "new", folder, *TINY, "--skip-bad", "--json")
    assert done.code == 0
    assert done.json["tasks"][0]["images"] == 12
    assert "skipped " in done.err
    state = tmp_path / "new"
    assert sapwood("predict", state, folder).code == 2
    assert len(sapwood("predict", state, folder, "--skip-bad", "--json").json["predictions"]) == 12
    assert sapwood("evaluate", state, folder, "--skip-bad", "--json").json["images"] == 12


@pytest.mark.parametrize("name", ["polar bear", "St. Bernard", ".hidden..", "sn\u2603w 🐝", "-dash", "ünï"])
def test_odd_class_names_are_fine(sapwood: Run, tmp_path: Path, picture_folder: Callable[..., Path], name: str) -> None:
    folder = picture_folder(["ant", name] if not name.startswith(".") else ["ant", f"x{name}"], 3)
    classes = sorted(each.name for each in folder.iterdir())
    done = sapwood("learn", tmp_path / "new", folder, *TINY, "--json", "--task", name)
    assert done.code == 0, done.err
    assert sorted(done.json["classes"]) == classes
    assert done.json["tasks"][0]["name"] == name
    assert sapwood("evaluate", tmp_path / "new", folder, "--json").json["per_class"].keys() == set(classes)


@pytest.mark.parametrize(
    ("text", "told"),
    [("path,kind\na.png,x\n", "label"), ("path,label\nnone.png,x\n", "none.png"), ("path,label\na.png,..\n", "..")],
    ids=["missing column", "missing file", "a class called .."],
)
def test_bad_tables(sapwood: Run, tmp_path: Path, text: str, told: str) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(text)
    done = sapwood("learn", tmp_path / "new", tmp_path / "list.csv", *TINY)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert told in done.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--method", "seq-lor"), "Did you mean 'seq-lora'? Known methods: "),
        (("--method", "lora+lfw"), "objectives: dkd, ewc, finetune, ilt, lwf, mib, plop, rcil, sats, ssul"),
        (("--method", "joint"), "only in benchmarks"),
        (("--backbone", "random:dinov2-tny"), "Did you mean 'random:dinov2-tiny'? Known backbones: "),
        (("--head", "rige"), "Did you mean 'ridge'? Known heads: "),
        (("--set", "training.epoch=3"), "Did you mean 'training.epochs'? Settings of training: accumulate"),
        (("--set", "trainng.epochs=3"), "parts are adapter, objective, head, training"),
        (("--set", "training.epochs"), "part.key=value"),
        (("--epochs", "0"), "training.epochs must be >= 1, got 0"),
        (("--precision", "fp8"), "fp32, bf16, auto"),
        (("--image-size", "30"), "28"),
        (("--device", "abacus"), "--device abacus"),
        (("--config", "none.json"), "cannot be read"),
        (("--test", "none"), "no such file or folder: none"),
    ],
)
def test_bad_options_of_a_new_state(
    sapwood: Run, tmp_path: Path, read_only_world: World, options: tuple[str, str], told: str
) -> None:
    done = sapwood("learn", tmp_path / "new", read_only_world.first, *TINY, *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert told in done.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.toml", "x = [", "is not TOML"),
        ("a.json", "[1]", "tables of settings for adapter, objective, head, training"),
        ("a.toml", "epochs = 3", "'epochs' is not"),
        ("a.toml", "[training]\nepoch = 3", "no setting 'training.epoch'"),
    ],
)
def test_bad_files_of_settings(
    sapwood: Run, tmp_path: Path, read_only_world: World, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text)
    done = sapwood("learn", tmp_path / "new", read_only_world.first, *TINY, "--config", tmp_path / name)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert told in done.err


def test_an_unknown_class_among_the_test_pictures(sapwood: Run, tmp_path: Path, world: World) -> None:
    done = sapwood("learn", tmp_path / "new", world.first, *TINY, "--test", world.test)
    assert (done.code, done.out) == (2, "")
    assert "unknown class 'cow' in the test pictures; known: ant, bee" in done.err
    assert not (tmp_path / "new").exists(), "made by this command, and it has learned nothing"
    sapwood("undo", world.state)
    before = tree(world.state)
    assert "unknown class 'cow'" in sapwood("evaluate", world.state, world.test).err
    assert tree(world.state) == before


def test_a_class_with_one_picture_is_a_warning(
    sapwood: Run, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    done = sapwood("learn", tmp_path / "new", picture_folder({"ant": 5, "bee": 1}), *TINY)
    assert done.code == 0
    assert "class 'bee' has a single picture; more would help" in done.err


def newer(state: Path) -> None:
    pointer = json.loads((state / "sapwood.json").read_text())
    (state / "sapwood.json").write_text(json.dumps(pointer | {"format": 99}))


def lacking(state: Path) -> None:
    next(state.glob("tasks/0002*/head.safetensors")).unlink()


def flipped(state: Path) -> None:
    file = next(state.glob("tasks/0002*/head.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda state: (state / "sapwood.json").unlink(), "is not a sapwood state"),
        (shutil.rmtree, "no such state folder"),
        (newer, "99"),
        (lacking, "head.safetensors is missing"),
        (flipped, "head.safetensors is damaged: its sha256"),
    ],
    ids=["not one", "not there", "newer", "lacks a file", "another sha256"],
)
@pytest.mark.parametrize("command", ["predict", "evaluate", "report", "learn"])
def test_damaged_states(
    sapwood: Run, tmp_path: Path, world: World, damage: Callable[[Path], None], told: str, command: str
) -> None:
    damage(world.state)
    if command == "learn" and not State.exists(world.state):
        if not world.state.exists():
            return  # learn makes a state where there is none
        told = "not empty and not a sapwood state"
    before = tree(world.state)
    page = tmp_path / "r.html"
    end = {"report": ["--data", world.test, "-o", page], "learn": [world.first, "--relearn"]}.get(command, [world.test])
    done = sapwood(command, world.state, *end)
    assert (done.code, done.out) == (2, "")
    assert told in done.err.splitlines()[-1]
    assert tree(world.state) == before
    assert not page.exists()


def test_a_second_writer(sapwood: Run, world: World) -> None:
    with State.open(world.state).writer():
        for line in (["learn", world.state, world.first, "--relearn"], ["undo", world.state]):
            done = sapwood(*line)
            assert (done.code, done.out) == (2, "")
            assert f"is being written by process {os.getpid()} on " in done.err.splitlines()[-1]
        assert sapwood("predict", world.state, world.test).code == 0, "readers need no lock"
    assert sapwood("undo", world.state).code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("a small file system is mounted on Linux only")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(sapwood: Run, small_disk: Path, read_only_world: World) -> None:
    state = small_disk / "model"
    large = ("--method", "none+finetune", "--head", "ridge", "--set", "head.projection=500")
    done = sapwood("learn", state, read_only_world.first, *TINY, *large)
    assert (done.code, done.out) == (1, "")
    assert "no space left on the disk" in done.err.splitlines()[-1]
    assert not state.exists()
    assert sapwood("learn", state, read_only_world.first, *TINY, "--method", "ncm").code == 0
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096))
    before = tree(state)
    done = sapwood("learn", state, read_only_world.second)
    assert (done.code, done.out) == (1, "")
    assert "no space left on the disk" in done.err.splitlines()[-1]
    assert tree(state) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_report(sapwood: Run, read_only_world: World) -> None:
    done = sapwood("report", read_only_world.state, "-o", "/dev/full")
    assert done.code == 1
    assert done.err.startswith("error: No space left on device")


def test_where_a_report_cannot_lie(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    for place in (tmp_path, tmp_path / "none" / "page.html"):
        done = sapwood("report", read_only_world.state, "-o", place)
        assert (done.code, done.err.count("\n")) == (2, 1)


def test_only_a_state_that_was_just_made_can_be_abandoned(tmp_path: Path, world: World) -> None:
    before = tree(world.state)
    with pytest.raises(StateError, match=r"is at version v0003-.* already and is not removed"):
        State.open(world.state).abandon()
    assert tree(world.state) == before
    fresh = State.create(tmp_path / "fresh", {"tasks": []})
    (fresh.path / "notes.txt").write_text("mine")
    fresh.abandon()
    assert [path.name for path in fresh.path.iterdir()] == ["notes.txt"]


def test_predict_before_anything_is_learned(sapwood: Run, world: World) -> None:
    for _ in range(2):
        assert sapwood("undo", world.state).code == 0
    assert "nothing learned yet" in sapwood("show", world.state).out
    done = sapwood("predict", world.state, world.test)
    assert done.code == 2
    assert "has learned nothing yet; run: sapwood learn" in done.err
    assert "nothing to undo" in sapwood("undo", world.state).err
