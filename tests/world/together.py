"""What each of several processes does in ``test_together.py``."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from typing import Any

from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sapwood.learner import Learner
from sapwood.progress import Progress


class Held(Progress):
    """Looks once a round at what lies in this process after a step."""

    def __init__(self) -> None:
        self.share = 1.0
        self.wanted = False

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.wanted = what == "training"

    def advance(self, units: int, **facts: float) -> None:
        if not self.wanted:
            return
        self.wanted = False
        alive = gc.get_objects()  # proxies of the dead among it, which isinstance would wake
        blocks = [each for each in alive if issubclass(type(each), FSDPModule)]
        # torch keeps the blocks of earlier states; after their round they are whole.
        weights = [each for block in blocks for each in block.parameters() if isinstance(each, DTensor)]
        if weights:
            self.share = sum(each.to_local().numel() for each in weights) / sum(each.numel() for each in weights)


def learn_all(jobs: Iterable[Mapping[str, Any]], rank: int) -> list[float]:
    """Make a state for each job: {"state", "method", "kind", "size", "rounds": [folders], "settings", "unlabelled"}.

    Returns:
        For each the share of the blocks' frozen weights that this process held between steps.
    """
    shares = []
    for job in jobs:
        learner = Learner.create(
            job["state"],
            backbone=job["backbone"],
            method=job["method"],
            kind=job["kind"],
            image_size=job["size"],
            settings=job["settings"],
        )
        held = Held()
        for data in job["rounds"]:
            learner.learn(data, unlabelled=job["unlabelled"], progress=held)
        version = learner.state.version
        assert len(version.record["tasks"]) == len(job["rounds"]), f"process {rank} knows of the round"
        shares.append(held.share)
    return shares
