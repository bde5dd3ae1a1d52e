"""A Hugging Face dataset saved to disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapwood.data.decode import decode
from sapwood.data.sources import has_splits, read_data, read_split
from sapwood.data.store import PictureStore
from sapwood.errors import DataError

datasets = pytest.importorskip("datasets")

PIXELS = [np.full((4, 6, 3), 40 * index, np.uint8) for index in range(6)]


def dataset(count: int = 6, names: tuple[str, ...] = ("wolf", "Büffel")) -> datasets.Dataset:
    features = datasets.Features(
        {"note": datasets.Value("string"), "img": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    )
    content = {
        "note": ["n"] * count,
        "img": [Image.fromarray(one) for one in PIXELS[:count]],
        "label": [1, 0] * (count // 2),
    }
    return datasets.Dataset.from_dict(content, features=features)


def test_a_single_dataset(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "d")
    pictures = read_data(tmp_path / "d")
    assert pictures.labels == ("Büffel", "wolf") * 3
    store = PictureStore(pictures, 4, workers=3)
    assert all(np.array_equal(store[index], PIXELS[index]) for index in range(6))
    assert pictures[2].name == f"{tmp_path / 'd'}[2]"
    assert not has_splits(tmp_path / "d")
    with pytest.raises(DataError, match="has no test split; it was saved without splits"):
        read_split(tmp_path / "d", "test")


def test_splits(tmp_path: Path) -> None:
    parts = datasets.DatasetDict({"train": dataset(), "validation": dataset(4), "test": dataset(2)})
    parts.save_to_disk(tmp_path / "d")
    assert has_splits(tmp_path / "d")
    assert [len(read_split(tmp_path / "d", part)) for part in ("train", "val", "test")] == [6, 4, 2]
    assert len(read_data(tmp_path / "d")) == 6
    datasets.DatasetDict({"extra": dataset()}).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match="has no train split, only: extra"):
        read_data(tmp_path / "e")


def test_pictures_that_stayed_files_and_labels_that_are_text(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[3]).save(tmp_path / "a.png")
    features = datasets.Features({"image": datasets.Image(), "class": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], "class": ["fox"]}, features=features)
    made.save_to_disk(tmp_path / "d")
    pictures = read_data(tmp_path / "d")
    assert pictures.labels == ("fox",)
    assert np.array_equal(decode(pictures[0]), PIXELS[3])


def test_faults(tmp_path: Path) -> None:
    def said(content: object, name: str) -> str:
        content.save_to_disk(tmp_path / name)  # type: ignore[attr-defined]
        with pytest.raises(DataError) as caught:
            read_data(tmp_path / name)
        assert str(caught.value).isprintable()
        return str(caught.value)

    assert "has no column of images, only: note, label" in said(dataset().remove_columns("img"), "a")
    assert "has no column 'label', only: note, img" in said(dataset().remove_columns("label"), "b")
    assert "differs from class" in said(dataset(names=("wolf", "Wolf")), "c")
    unlabelled = dataset().map(lambda row: {"label": -1})
    assert "some rows have no label" in said(unlabelled, "d")
    dataset().save_to_disk(tmp_path / "e")
    (tmp_path / "e" / "state.json").write_text("{")
    with pytest.raises(DataError, match="the saved dataset cannot be opened"):
        read_data(tmp_path / "e")


def test_without_the_extra_the_line_names_it(tmp_path: Path) -> None:
    dataset(2).save_to_disk(tmp_path / "d")
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from sapwood.data.sources import read_data\n"
        "try: read_data(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    root = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "d")], capture_output=True, text=True, env={"PYTHONPATH": str(root)}
    )
    assert done.stdout.startswith("DataError"), done.stderr
    assert "pip install 'sapwood[datasets]'" in done.stdout
