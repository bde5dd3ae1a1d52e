"""Learns what each line of its input says, in as many processes as the launcher starts: the tests' script.

A line: {"state", "method", "kind", "size", "rounds": [folders], "settings", "unlabelled"}. Every process prints one
JSON list: for each line the share of the blocks' frozen weights that it held between steps.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sapwood.learner import Learner
from sapwood.progress import Progress
from sapwood.world import begin, size


class Held(Progress):
    """Looks at what lies in this process after every step."""

    def __init__(self) -> None:
        self.share = 1.0
        self.training = False

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.training = what == "training"

    def advance(self, steps: int = 1, **shown: Any) -> None:
        if not self.training:
            return
        blocks = [each for each in gc.get_objects() if isinstance(each, FSDPModule)]
        # torch keeps the blocks of earlier lines; after their round they are whole.
        weights = [each for block in blocks for each in block.parameters() if isinstance(each, DTensor)]
        if weights:
            self.share = sum(each.to_local().numel() for each in weights) / sum(each.numel() for each in weights)


def main() -> None:
    begin()
    expected, jobs = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text("utf-8"))
    assert size() == expected
    shares = []
    for job in jobs:
        learner = Learner.create(
            job["state"],
            backbone=job["backbone"],
            method=job["method"],
            kind=job["kind"],
            image_size=job["size"] if isinstance(job["size"], int) else tuple(job["size"]),
            settings=job["settings"],
        )
        held = Held()
        for data in job["rounds"]:
            learner.learn(data, unlabelled=job["unlabelled"], progress=held)
        version = learner.state.version
        assert len(version.record["tasks"]) == len(job["rounds"]), "every process knows of the round"
        shares.append(held.share)
        del learner
        gc.collect()
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
