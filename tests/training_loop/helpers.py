"""Networks that learn rounds without a state folder, and their checkpoints in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.backbones import create_backbone
from sapwood.data.pictures import Pictures, as_picture
from sapwood.data.store import PictureStore
from sapwood.heads import HEADS
from sapwood.kinds import KINDS, Round
from sapwood.network import Network
from sapwood.objectives import OBJECTIVES
from sapwood.progress import Progress
from sapwood.rounds import learn_round
from sapwood.settings import TrainingConfig
from sapwood.training import Stop

FAST = TrainingConfig(epochs=2, batch_size=4, precision="fp32", validation=0.0, lr=2e-3)
SIZE = 28


def with_(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{**FAST.__dict__, **changes})


class Kept:
    """Checkpoints in memory, as independent copies."""

    def __init__(self) -> None:
        self.found: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.saves = 0

    def save(self, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        copied = {**meta, "position": dict(meta["position"]), "log": [dict(row) for row in meta["log"]]}
        self.found, self.saves = ({name: tensor.clone() for name, tensor in tensors.items()}, copied), self.saves + 1

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.found

    def keep_rows(self, what: str, first: int, rows: Tensor) -> None:
        """Nothing is kept: passes begin at their first picture."""

    def kept_rows(self, what: str) -> None:
        """Nothing."""


class StopAfter(Progress):
    """Asks for a stop after so many training steps, as a signal would."""

    def __init__(self, stop: Stop, steps: int) -> None:
        self.stop, self.steps, self.training = stop, steps, False

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.training = what == "training"

    def advance(self, units: int, **facts: float) -> None:
        self.steps -= self.training
        self.stop.requested |= self.training and self.steps == 0


def store(classes: str, per_class: int = 5) -> PictureStore:
    random = np.random.default_rng(sorted(map(ord, classes)))
    base = {name: random.integers(0, 256, 3) for name in classes}
    return PictureStore(
        Pictures(
            as_picture(
                (base[name] + random.integers(-40, 40, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8),
                name=f"{name}{index}",
                label=name,
            )
            for name in classes
            for index in range(per_class)
        ),
        SIZE,
    )


class Bench:
    """A network that learns rounds without a state folder."""

    def __init__(
        self, adapter: str = "lora", objective: str = "finetune", head: str = "linear", **settings: Any
    ) -> None:
        backbone = create_backbone("random:dinov2-tiny", SIZE)
        made = ADAPTERS[adapter](ADAPTERS[adapter].Config(), backbone.sites, backbone.info)
        self.network = Network(backbone, made, HEADS[head](HEADS[head].Config(), backbone.info.dim))
        self.objective = OBJECTIVES[objective](OBJECTIVES[objective].Config(**settings))
        self.names: tuple[str, ...] = ()
        self.rounds = 0

    def learn(
        self, classes: str, config: TrainingConfig, kept: Kept | None = None, stop_after: int = 0
    ) -> dict[str, Any]:
        data = self.round(classes, config)
        stop = Stop()
        facts = learn_round(
            self.network,
            self.objective,
            data,
            config,
            kept or Kept(),
            StopAfter(stop, stop_after),
            stop,
        )
        self.names, self.rounds = data.names, self.rounds + 1
        return facts

    def round(self, classes: str, config: TrainingConfig) -> Round:
        return KINDS["classification"].prepare(
            store(classes), self.names, self.rounds, f"round {self.rounds}", 0, config.validation, SIZE
        )

    def tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.network.trainable().items()}


def worst(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    return max((one[name] - two[name]).abs().max().item() for name in one)
