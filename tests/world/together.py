"""Learns what each line of its input says, in as many processes as the launcher starts: the tests' script.

A line: {"state", "method", "kind", "size", "rounds": [folders], "settings", "unlabelled"}.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from sapwood.backbones import create_backbone
from sapwood.learner import Learner
from sapwood.world import begin, size


def main() -> None:
    begin()
    create_backbone("random:dinov2-tiny", 28)  # what the first use imports
    gc.collect()
    gc.freeze()  # the trainer collects garbage after every round
    expected, jobs = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text("utf-8"))
    assert size() == expected
    for job in jobs:
        learner = Learner.create(
            job["state"],
            backbone=job["backbone"],
            method=job["method"],
            kind=job["kind"],
            image_size=job["size"] if isinstance(job["size"], int) else tuple(job["size"]),
            settings=job["settings"],
        )
        for data in job["rounds"]:
            learner.learn(data, unlabelled=job["unlabelled"])
        version = learner.state.version
        assert len(version.record["tasks"]) == len(job["rounds"]), "every process knows of the round"


if __name__ == "__main__":
    main()
