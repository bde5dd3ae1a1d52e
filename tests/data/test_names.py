"""Names of classes and files."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.data.names import check_class_names, class_name, natural_key, shown
from sapwood.errors import DataError


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "a/b", "a\\b", "a\nb", "\x00", "a\tb", "\x7f", "a\u2028b", "caf\udce9"]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"pictures: .* cannot be the name of a class .*; rename it") as caught:
        class_name(name, "pictures")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["St. Bernard", "v1.0.", "Größe", "三毛猫", "🐈 cat", "a'b\"c", "%s{0}$HOME", "-x", "..."]
)
def test_names_that_are_fine(name: str) -> None:
    assert class_name(name, "pictures") == name


def test_both_unicode_forms_are_one_class() -> None:
    assert class_name(unicodedata.normalize("NFD", "Büffel"), "x") == class_name("Büffel", "x") == "Büffel"


def test_letter_case_clashes_within_and_with_what_is_known() -> None:
    check_class_names(["cat", "dog"], "x", known=["cat", "Bird"])
    with pytest.raises(DataError, match="class 'Cat' differs from class 'cat' in letter case only"):
        check_class_names(["cat", "Cat"], "x")
    with pytest.raises(DataError, match="'STRASSE' differs from class 'Straße'"):
        check_class_names(["STRASSE"], "x", known=["Straße"])


def test_natural_order() -> None:
    assert sorted(["b10", "b9", "a", "B2", "10", "9", "b"], key=natural_key) == ["9", "10", "a", "b", "B2", "b9", "b10"]


@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_names_can_be_sorted_and_shown(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)
    assert all(shown(name).isprintable() for name in names)


@given(st.text())
def test_a_name_is_refused_or_kept_for_good(name: str) -> None:
    try:
        kept = class_name(name, "x")
    except DataError:
        return
    assert class_name(kept, "x") == kept
    assert unicodedata.normalize("NFC", name) == kept
