"""The sequence of pictures, and what can become one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.data.decode import decode
from sapwood.data.pictures import Picture, Pictures, as_picture
from sapwood.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def test_sequence() -> None:
    pictures = Pictures(Picture(str(index), PIXELS, label) for index, label in enumerate("babc"))
    assert pictures.labels == ("b", "a", "b", "c")
    assert pictures.classes == ("b", "a", "c")
    assert [one.name for one in pictures.subset([3, 0])] == ["3", "0"]
    assert [one.name for one in pictures.of({"c", "b"})] == ["0", "2", "3"]
    assert (pictures[1:3] + pictures[:1]).labels == ("a", "b", "b")
    assert pictures[-1].name == "3"
    assert Pictures([Picture("x", PIXELS)]).classes == ()


@pytest.mark.parametrize(
    "thing",
    [
        PIXELS,
        Image.fromarray(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
        (torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255).requires_grad_(),
    ],
    ids=["array", "pillow", "uint8 tensor", "float tensor", "tensor with gradient"],
)
def test_pixels_in_memory_survive(thing: object) -> None:
    picture = as_picture(thing, label="cat", name="mine")
    assert (picture.name, picture.label) == ("mine", "cat")
    assert np.array_equal(decode(picture), PIXELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_pixels_too(dtype: torch.dtype) -> None:
    black_and_white = PIXELS // 128 * 255
    tensor = torch.from_numpy(black_and_white).permute(2, 0, 1).to(dtype) / 255
    assert np.array_equal(decode(as_picture(tensor)), black_and_white)


def test_files_keep_the_name_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert as_picture("./a.png").name == "./a.png"
    assert np.array_equal(decode(as_picture("./a.png")), PIXELS)
    assert np.array_equal(decode(as_picture((tmp_path / "a.png").read_bytes())), PIXELS)


def test_what_is_no_picture_is_refused() -> None:
    for wrong in (torch.rand(3, 4, 4) * 2, torch.full((3, 4, 4), torch.nan), torch.rand(2, 3, 4, 4), 7):
        with pytest.raises(DataError):
            as_picture(wrong)
