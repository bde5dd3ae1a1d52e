"""Pictures in files, kept in few bytes, are ``Pictures`` in all they do."""

from __future__ import annotations

import pickle
from pathlib import Path

from sapwood.data.file_pictures import FilePictures
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.table import read_table

FILES = [("/data/a/1.png", "dog"), ("/data/é 2.png", "cat"), ("/else/3.png", "dog"), ("/data/\udcff.png", "owl")]


def test_they_are_what_pictures_are() -> None:
    compact = FilePictures(FILES, "/data")
    plain = Pictures(Picture(path, Path(path), label) for path, label in FILES)

    def seen(pictures: Pictures) -> list[tuple[str, object, str | None]]:
        return [(each.name, each.source, each.label) for each in pictures]

    assert seen(compact) == seen(plain)
    assert (compact.labels, compact.classes, len(compact)) == (plain.labels, plain.classes, 4)
    for change in (
        lambda given: given.subset([3, 0, 0]),
        lambda given: given.subset(iter([])),
        lambda given: given.of(["owl", "dog", "bee"]),
        lambda given: given[1:],
        lambda given: given[::-1].subset([1, 0]),
        lambda given: given + given[:1],
        lambda given: Pictures([plain[0]]) + given,
        lambda given: pickle.loads(pickle.dumps(given)),
    ):
        assert seen(change(compact)) == seen(change(plain))
        assert change(compact).classes == change(plain).classes
        assert change(compact).labels == change(plain).labels
    assert compact[-1].name == FILES[3][0]
    assert repr(compact) == "FilePictures(4 pictures, 3 classes)"


def test_rows_of_a_table_take_few_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"a.png,class {n % 7}\n" for n in range(5000)))
    found = read_table(tmp_path / "list.csv")
    assert isinstance(found, FilePictures)
    assert found.nbytes / len(found) < 30
    assert len(found.classes) == 7
    assert found.subset(range(0, 5000, 2))._text is found._text
