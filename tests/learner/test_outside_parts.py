"""Parts of other packages that do no more than what the base classes ask of them, through two rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.adapters.base import Adapter, Context
from sapwood.errors import ConfigError, NotMergeable
from sapwood.export import export
from sapwood.heads import HEADS, Features, PooledHead
from sapwood.learner import Learner
from sapwood.objectives import OBJECTIVES, Objective
from sapwood.objectives.base import Outputs
from sapwood.task import Task

from .helpers import FAST, Folders, create


@dataclass(frozen=True)
class Nothing:
    pass


class Means(PooledHead):
    """The nearest class mean, with no setting at all."""

    name, fitted, Config, summary, growth = "means", "statistics", Nothing, "means", "a mean a class"

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__(config, dim)
        self.total, self.count = torch.zeros(0, dim), torch.zeros(0)

    @property
    def wants_features(self) -> bool:
        return True

    def grow_statistics(self, count: int) -> None:
        self.total = torch.cat([self.total, torch.zeros(count, self.dim)])
        self.count = torch.cat([self.count, torch.zeros(count)])

    def logits(self, features: Tensor) -> Tensor:
        return -torch.cdist(features, (self.total / self.count.clamp(min=1)[:, None]).to(features))

    def fit(self, train: Features, validation: Features | None, generator: torch.Generator) -> dict[str, Any]:
        features, targets = self.checked(train)
        self.total.index_add_(0, targets.cpu(), features.cpu())
        self.count += torch.bincount(targets.cpu(), minlength=self.classes)
        return {}

    def kept_statistics(self) -> dict[str, Tensor]:
        return {"total": self.total, "count": self.count}

    def load_statistics(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.total, self.count = tensors["total"].clone(), tensors["count"].clone()


class Compared(Objective):
    """Cross entropy, and what the class is told to look at stays like the teacher's; no setting at all."""

    Config, summary, field = Nothing, "cross entropy + likeness", ""

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        loss = F.cross_entropy(outputs.logits, targets)
        if teacher is None:
            return loss
        mine, other = getattr(outputs, self.field), getattr(teacher, self.field)
        pairs = list(zip(mine, other, strict=True)) if isinstance(mine, tuple) else [(mine, other)]
        assert pairs
        assert all(one.numel() for one, _ in pairs)
        return loss + sum((one - two).square().mean() for one, two in pairs)


def comparing(field: str) -> type[Objective]:
    return type(f"Compared{field}", (Compared,), {"field": field, "needs": frozenset({"teacher", field})})


class Shift(Adapter):
    """A number added to what each site gives."""

    Config, summary, growth, mergeable = Nothing, "a number a site", "nothing", False

    def __init__(self, config: Any, sites: Any, info: Any) -> None:
        super().__init__(config, sites, info)
        self.by = torch.nn.Parameter(torch.zeros(()))

    def forward(self, site: Any, x: Tensor, context: Context) -> Tensor:
        return self.by.expand(*x.shape[:-1], site.outputs)

    def dense(self, site: Any) -> Tensor:
        raise NotMergeable("what is added is no weight")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts above, as if their packages were installed."""
    monkeypatch.setitem(HEADS._entries, "means", Means)
    monkeypatch.setitem(ADAPTERS._entries, "shift", Shift)
    for field in ("features", "attention", "maps", "parts"):
        monkeypatch.setitem(OBJECTIVES._entries, f"like-{field}", comparing(field))


def two_rounds(path: Path, picture_folder: Folders, method: str, head: str | None = None, **training: Any) -> Learner:
    learner = create(path, method, head=head)
    learner.learn(picture_folder(["ant", "bee"], 4, name="first"), training={**FAST, **training})
    return learner.learn(picture_folder(["cat", "dog"], 4, name="second", seed=1))


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("method", ["lora+finetune", "none+finetune", "shift+lwf"])
def test_a_head_without_settings(tmp_path: Path, picture_folder: Folders, method: str) -> None:
    learner = two_rounds(tmp_path / "state", picture_folder, method, "means")
    folder = tmp_path / "first"
    assert [x.top for x in Learner.open(learner.state.path).predict(folder)] == [x.top for x in learner.predict(folder)]


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("field", ["features", "attention", "maps"])
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_an_objective_gets_what_it_asks_for(tmp_path: Path, picture_folder: Folders, adapter: str, field: str) -> None:
    learner = two_rounds(tmp_path / "state", picture_folder, f"{adapter}+like-{field}")
    assert learner.classes_ == ("ant", "bee", "cat", "dog")


@pytest.mark.usefixtures("outside")
def test_where_the_backbone_stays_after_the_first_round_too(tmp_path: Path, picture_folder: Folders) -> None:
    two_rounds(tmp_path / "state", picture_folder, "lora+like-features", adapt="first")


@pytest.mark.usefixtures("outside")
def test_what_no_head_of_pictures_has_is_refused(tmp_path: Path, picture_folder: Folders) -> None:
    with pytest.raises(ConfigError, match="scores that the dense head gives to pixels; this head has none"):
        two_rounds(tmp_path / "state", picture_folder, "lora+like-parts")


@pytest.mark.usefixtures("outside")
def test_a_remedy_is_offered_only_where_it_is_one(tmp_path: Path, picture_folder: Folders) -> None:
    learner = two_rounds(tmp_path / "state", picture_folder, "shift+finetune")
    with pytest.raises(NotMergeable, match=r"what is added is no weight\. Export everything with --to onnx$"):
        export(learner.state.path, tmp_path / "out", "merged")
