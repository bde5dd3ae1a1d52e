"""Rows in memory and in a file are read alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sapwood.data.rows import BLOCK, FileRows, JoinedRows, RowBuffer, blocks, joined

ROWS = torch.arange(21.0).reshape(7, 3)


def stored(rows: Tensor, budget: int | None) -> Tensor | FileRows:
    buffer = RowBuffer(budget)
    for part in rows.split(2):
        buffer.append(part)
    assert len(buffer) == len(rows)
    return buffer.close()


@pytest.mark.parametrize("budget", [None, 84, 83, 30, 0])
def test_rows_come_back_by_slice_and_by_index(budget: int | None) -> None:
    found = stored(ROWS, budget)
    assert isinstance(found, Tensor if budget in (None, 84) else FileRows)
    assert (len(found), tuple(found.shape)) == (7, (7, 3))
    for part in (slice(0, 7), slice(2, 5), slice(5, 99), slice(4, 4), slice(None, 3)):
        assert torch.equal(found[part], ROWS[part])
    for index in ([3], [0, 1, 2, 6], [6, 5, 0, 5], []):
        places = torch.tensor(index, dtype=torch.int64)
        assert torch.equal(found[places], ROWS[places])


def test_joined_rows_are_read_as_one() -> None:
    both = JoinedRows(stored(ROWS, 0), ROWS + 100)
    whole = torch.cat([ROWS, ROWS + 100])
    for part in (slice(0, 14), slice(5, 9), slice(0, 7), slice(7, 14), slice(9, 11), slice(14, 20)):
        assert torch.equal(both[part], whole[part])
    places = torch.tensor([13, 0, 7, 6, 6])
    assert torch.equal(both[places], whole[places])
    with pytest.raises(ValueError, match="not alike"):
        JoinedRows(ROWS, ROWS[:, :2])


def test_few_rows_are_copied_and_many_are_not() -> None:
    assert isinstance(joined(ROWS, ROWS), Tensor)
    many = joined(torch.zeros(BLOCK, 1), torch.ones(2, 1))
    assert isinstance(many, JoinedRows)
    assert [len(block) for block in blocks(many)] == [BLOCK, 2]
    assert [tuple(block.shape) for block in blocks(torch.zeros(0, 3))] == [(0, 3)]
