"""A step with every combination of an adapter, an objective and a head that ``test_combinations.py`` leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.heads import HEADS

from .helpers import Rounds, computed, create, logits, views
from .test_combinations import LEGAL, ONE_EPOCH, WHOLE

GiveRounds = Callable[[str], Rounds]
STEPS = [parts for parts in LEGAL if parts not in WHOLE]


@pytest.mark.parametrize(("adapter", "objective", "head"), STEPS, ids=["-".join(parts) for parts in STEPS])
def test_all_parts_fit(adapter: str, objective: str, head: str, rounds: GiveRounds, tmp_path: Path) -> None:
    """A step in each of two rounds, the second with a teacher and with new and known classes."""
    kind = HEADS[head].kind
    learner = create(tmp_path / "state", f"{adapter}+{objective}", kind, head=head)
    learner.learn(rounds(kind).single, training={**ONE_EPOCH, "batch_size": 64}).learn(rounds(kind).mixed)
    assert computed(learner, logits(learner, views(rounds(kind).single, kind)[:1]))
