"""Bad masks get one clear line and exit code 2, and the state, or its absence, stays as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from .conftest import Run, tree

TINY = ("--backbone", "random:dinov2-tiny", "--image-size", "28x42")
Folders = Callable[..., Path]


class Street(NamedTuple):
    """A state that learned road and car, and from what."""

    state: Path
    data: Path


_STREET: list[Street] = []


@pytest.fixture
def street(sapwood: Run, tmp_path: Path, mask_folder: Folders) -> Street:
    """Its state is made once; each test gets a copy."""
    if not _STREET:
        made = Street(tmp_path / "model", mask_folder(["road", "car"], 6, name="street"))
        options = ("--precision", "fp32", "--validation", "0", "--epochs", "1")
        assert sapwood("learn", made.state, made.data, *TINY, *options).code == 0
        _STREET.append(made)
    return _STREET[0]._replace(state=shutil.copytree(_STREET[0].state, tmp_path / "state"))


def values_in(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def first_mask(folder: Path) -> Path:
    return sorted((folder / "masks").iterdir())[0]


def another_size(folder: Path) -> None:
    path = first_mask(folder)
    Image.open(path).resize((40, 28), Image.Resampling.NEAREST).save(path)


def strange_value(folder: Path) -> None:
    values = values_in(first_mask(folder)).copy()
    values[3, 5] = 9
    Image.fromarray(values).save(first_mask(folder))


def colours(folder: Path) -> None:
    Image.open(first_mask(folder)).convert("RGB").save(first_mask(folder))


def sixteen_bits(folder: Path) -> None:
    Image.fromarray(values_in(first_mask(folder)).astype(np.uint16)).save(first_mask(folder))


def no_pixel(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.zeros_like(values_in(path))).save(path)


def smaller_than_a_patch(folder: Path) -> None:
    Image.new("RGB", (42, 13)).save(folder / "images" / "small.png")
    Image.new("L", (42, 13)).save(folder / "masks" / "small.png")


def legend(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "classes.json").write_text(text)


# What is done to a folder of "road" (1) and "pole" (2), and what the line says: the file, what is wrong, the remedy.
BAD: Mapping[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "another size": (
        another_size,
        ("masks/000.png", "is 40 x 28 pixels, but its picture is 42 x 28", "Mend or remove"),
    ),
    "strange value": (strange_value, ("masks/000.png", "holds the value 9, which no class has", "classes.json")),
    "colours": (colours, ("masks/000.png", "is a colour picture", "to classes.json, or save the mask as grey")),
    "16 bits": (sixteen_bits, ("masks/000.png", "more than 8 bits a pixel", "save the mask with 8 bits")),
    "no mask": (
        lambda folder: (folder / "masks" / "002.png").unlink(),
        ("bad: 1 of 4 pictures have no mask (002)", "stems must be equal"),
    ),
    "no picture": (
        lambda folder: (folder / "images" / "002.png").unlink(),
        ("bad: 1 of 4 masks have no picture (002)", "stems must be equal"),
    ),
    "no pixel of the new classes": (
        no_pixel,
        ("no mask holds a pixel of the new classes", "'pole'; label them, or take them out of the classes file"),
    ),
    "a value of two names": (
        legend('{"background": 0, "road": 1, "pole": 1}'),
        ("bad/classes.json", "value 1 is given two names, 'road' and 'pole'", "keep one"),
    ),
    "a value listed twice": (
        legend('{"0": "background", "1": "road", "1": "pole"}'),
        ("bad/classes.json", "'1' is listed twice", "keep one"),
    ),
    "a name of two values": (
        legend('["background", "road", "pole", "road"]'),
        ("bad/classes.json", "'road' is given two values, 1 and 3", "keep one"),
    ),
    "smaller than a patch": (
        smaller_than_a_patch,
        ("images/small.png", "is 42 x 13 pixels, smaller than a patch (14 x 14)", "enlarge it, or leave it out"),
    ),
}


@pytest.mark.parametrize("spoiled", BAD)
def test_bad_folders_get_one_line_and_nothing_is_lost(
    sapwood: Run, tmp_path: Path, mask_folder: Folders, street: Street, spoiled: str
) -> None:
    spoil, told = BAD[spoiled]
    bad = mask_folder(["road", "pole"], 4, name="bad")
    spoil(bad)
    given, before = tree(bad), tree(street.state)
    lines = [("learn", tmp_path / "new", bad, *TINY), ("learn", street.state, bad)]
    if spoiled != "no pixel of the new classes":  # nothing is wrong with measuring on these
        lines += [
            ("learn", street.state, street.data, "--test", bad, "--task", "more"),
            ("evaluate", street.state, bad),
        ]
    for line in lines:
        done = sapwood(*line)
        assert (done.code, done.out) == (2, ""), line
        errors = [each for each in done.err.splitlines() if each.startswith("error: ")]
        assert errors == done.err.splitlines()[-1:]
        assert all(text in errors[0] for text in told), errors[0]
        assert "Traceback" not in done.err
        assert tree(street.state) == before
        assert not (tmp_path / "new").exists()
    assert tree(bad) == given


def test_skip_bad_leaves_out_what_does_not_fit(
    sapwood: Run, tmp_path: Path, mask_folder: Folders, street: Street
) -> None:
    bad = mask_folder(["road", "pole"], 4, name="bad")
    another_size(bad)
    smaller_than_a_patch(bad)
    done = sapwood("learn", street.state, bad, "--skip-bad", "--json")
    assert done.code == 0, done.err
    assert done.json["tasks"][1]["images"] == 3
    skipped = [line for line in done.err.splitlines() if line.startswith("skipped ")]
    assert [line.split(":")[0] for line in skipped] == [
        f"skipped {bad}/masks/000.png",
        f"skipped {bad}/images/small.png",
    ]
    assert sapwood("evaluate", street.state, bad, "--skip-bad", "--json").json["images"] == 3
    drawn = sapwood("predict", street.state, bad / "images", "--out", tmp_path / "out", "--json")
    assert drawn.code == 2
    assert "small.png: is 42 x 13 pixels, smaller than a patch" in drawn.err
    drawn = sapwood("predict", street.state, bad / "images", "--out", tmp_path / "out", "--json", "--skip-bad")
    assert len(drawn.json["predictions"]) == 4


def test_masks_and_names_of_pictures_do_not_mix(
    sapwood: Run, tmp_path: Path, picture_folder: Folders, street: Street
) -> None:
    named = picture_folder(["ant", "bee"], 3)
    before = tree(street.state)
    for command in ("learn", "evaluate"):
        done = sapwood(command, street.state, named)
        assert (done.code, done.out) == (2, "")
        assert "learns segmentation, but these data are for classification; name another state" in done.err
    assert tree(street.state) == before
    names = ("--backbone", "random:dinov2-tiny", "--image-size", "28", "--method", "ncm")
    assert sapwood("learn", tmp_path / "names", named, *names).code == 0
    before = tree(tmp_path / "names")
    done = sapwood("learn", tmp_path / "names", street.data)
    assert (done.code, done.out) == (2, "")
    assert "learns classification, but these data are for segmentation; name another state" in done.err
    done = sapwood("predict", tmp_path / "names", named, "--out", tmp_path / "out", "--tile")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--out, --tile: only for states that draw masks" in done.err
    assert not (tmp_path / "out").exists()
    assert tree(tmp_path / "names") == before


def test_masks_that_were_not_predicted_are_never_replaced(sapwood: Run, tmp_path: Path, street: Street) -> None:
    picture = min((street.data / "images").iterdir())
    truth, drawn = (street.data / "masks" / f"{picture.stem}.png").read_bytes(), f"{picture.stem}.png"
    for option, name in (("--out", "masks"), ("--overlay", "pictures")):
        (tmp_path / name).mkdir()
        (tmp_path / name / drawn).write_bytes(truth)
        done = sapwood("predict", street.state, picture, option, tmp_path / name)
        assert done.code == 2
        assert f"{tmp_path / name / drawn} was not written by predict and would be lost; name another" in done.err
        assert (tmp_path / name / drawn).read_bytes() == truth
        (tmp_path / name / drawn).unlink()
        for _ in range(2):  # its own it may replace
            assert sapwood("predict", street.state, picture, option, tmp_path / name).code == 0
