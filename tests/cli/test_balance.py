"""``learn --balance`` from the command line: one picture of a class is enough, and rare ones count as much."""

from __future__ import annotations

from pathlib import Path

import torch

from sapwood.learner import Learner
from sapwood.repair import remove_class
from sapwood.state import State

from .conftest import TINY, Run, World, write_classes

RANPAC = (*TINY, "--method", "ranpac", "--set", "head.projection=40")


def test_uneven_rounds_with_and_without(sapwood: Run, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "first", {"ant": 30, "bee": 1})
    more = write_classes(tmp_path / "second", {"cow": 2}, seed=1)
    heads = {}
    for balance in ("auto", "none"):
        state = tmp_path / balance
        learned = sapwood(
            "learn", state, data, *RANPAC, "--json", *(("--balance", "none") if balance == "none" else ())
        )
        assert learned.code == 0
        assert "class 'bee' has a single picture; more would help" in learned.err
        assert sapwood("learn", state, more).code == 0  # the option holds for later rounds
        assert Learner.open(state).record["settings"]["training"]["balance"] == balance
        heads[balance] = Learner.open(state).network.head
        assert heads[balance].balanced is (balance == "auto")
        assert heads[balance].count.tolist() == [30, 1, 2]  # those held out have joined
    torch.testing.assert_close(heads["auto"].gram, heads["none"].gram)
    assert not torch.allclose(heads["auto"].solve(), heads["none"].solve(), rtol=1e-2)

    # Removing is exact under weights that follow from the numbers that are left.
    remove_class(State.open(tmp_path / "auto"), "cow")
    head = Learner.open(tmp_path / "auto").network.head
    assert sapwood("learn", tmp_path / "never", data, *RANPAC).code == 0
    never = Learner.open(tmp_path / "never").network.head
    never.strength = head.strength
    torch.testing.assert_close(head.solve(), never.solve(), atol=1e-8, rtol=0)
    torch.testing.assert_close(head.solution, never.solve().float(), atol=1e-6, rtol=0)


def test_another_word_is_refused(sapwood: Run, read_only_world: World, tmp_path: Path) -> None:
    refused = sapwood("learn", tmp_path / "state", read_only_world.first, *TINY, "--balance", "yes")
    assert refused.code == 2
    assert "training.balance must be one of auto, none, got 'yes'" in refused.err
    assert not (tmp_path / "state").exists()
