"""Names that nearly equal each other."""

from __future__ import annotations

import pytest

from sapwood.data.similar import edit_distance, similar_names


@pytest.mark.parametrize(
    ("new", "known", "similar"),
    [
        ("kestrel", "kestrel", False),
        ("falcons", "falcon", True),
        ("gold finch", "Goldfinch", True),
        ("falcno", "falcon", True),
        ("flcn", "falcon", True),
        ("facade", "falcon", False),
        ("cat", "cow", False),
        ("ox", "fox", True),
        ("raod", "road", True),
        ("brid", "bird", True),
        ("ab", "ba", False),
        ("a", "b", False),
        ("class 11", "class 12", False),
        ("--", "__", False),
    ],
)
def test_names_that_nearly_equal(new: str, known: str, similar: bool) -> None:
    assert list(similar_names([new], [known])) == ([(new, known)] if similar else [])


def test_edit_distance_against_the_definition() -> None:
    def slow(one: str, two: str) -> int:
        if not one or not two:
            return len(one) + len(two)
        changed = slow(one[1:], two[1:]) + (one[0] != two[0])
        swapped = [slow(one[2:], two[2:]) + 1] if one[:2] == two[1::-1] and len(one) > 1 < len(two) else []
        return min(changed, slow(one[1:], two) + 1, slow(one, two[1:]) + 1, *swapped)

    words = ["", "a", "ab", "ba", "abc", "acb", "cabb", "bbca"]
    assert all(edit_distance(one, two) == slow(one, two) for one in words for two in words)
