"""The interface carries what later adapters need: three toys, each of another kind, through the whole path.

One chooses an expert per picture before the forward, one gates its change by the input and scales the logits by the
gates, one folds its finished past into the weights and owns a magnitude that all sites share.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sapwood.adapters import ADAPTERS
from sapwood.adapters.base import Adapter, Context, Statistics, choose_sites
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.errors import Interrupted, NotMergeable
from sapwood.learner import Learner
from sapwood.network import Teacher
from sapwood.objectives.base import Outputs
from sapwood.progress import Progress
from sapwood.task import Snapshot, Task

RANK = 2
FAST = {"epochs": 3, "batch_size": 8, "precision": "fp32", "lr": 1e-2}


@dataclass(frozen=True)
class NoSettings:
    """Nothing to set."""


def key(site: Site) -> str:
    return site.name.replace(".", "_")


class Toy(Adapter):
    Config = NoSettings
    summary = "a toy"
    growth = "a toy's"

    def __init__(self, config: Any, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, choose_sites(sites, ("q", "v"), "all"), info)

    def pairs(self, task: Task, up: float = 0.0) -> tuple[nn.ParameterDict, nn.ParameterDict]:
        generator = task.generator("adapter")
        down = {key(site): torch.randn(RANK, site.inputs, generator=generator) / 8 for site in self.sites}
        ups = {key(site): up * torch.randn(site.outputs, RANK, generator=generator) for site in self.sites}
        return nn.ParameterDict(down), nn.ParameterDict(ups)


class Experts(Toy):
    """A new pair a round; each picture takes the expert whose mean feature of the bare backbone is nearest."""

    mergeable = False
    history = "all"

    def __init__(self, config: Any, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, sites, info)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.learning = False
        self.register_buffer("centres", torch.zeros(0, info.dim))
        self.register_buffer("seen", torch.zeros(0))

    def append(self, down: nn.Module, up: nn.Module, centre: Tensor, seen: Tensor) -> None:
        self.requires_grad_(False)
        self.down.append(down)
        self.up.append(up)
        self.centres, self.seen = torch.cat([self.centres, centre]), torch.cat([self.seen, seen])

    def before_task(self, task: Task, statistics: Statistics) -> None:
        self.append(*self.pairs(task), torch.zeros(1, self.info.dim), torch.zeros(1))
        self.learning = True

    def after_task(self, task: Task, statistics: Statistics) -> None:
        self.learning = False

    def plan(self, images: Tensor, network: Any) -> Context:
        if not len(self.down):
            return Context()
        with network.bare(), torch.no_grad():
            pooled = network.backbone(images).pooled.float()
        if self.learning and not torch.is_grad_enabled():  # a look at validation pictures between epochs
            return Context({"expert": torch.full((len(pooled),), len(self.down) - 1)})
        if self.learning:
            self.seen[-1] += len(pooled)
            self.centres[-1] += (pooled - self.centres[-1]).sum(0) / self.seen[-1]
            return Context({"expert": torch.full((len(pooled),), len(self.down) - 1)})
        distance = (pooled[:, None] - self.centres[None]).square().sum(2)
        return Context({"expert": distance.argmin(1)})

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor | None:
        chosen = context.values.get("expert")
        if chosen is None:
            return None
        down = torch.stack([pair[key(site)] for pair in self.down])[chosen]
        up = torch.stack([pair[key(site)] for pair in self.up])[chosen]
        return torch.einsum("bni,bri,bor->bno", x, down.to(x.dtype), up.to(x.dtype))

    def dense(self, site: Site) -> Tensor | None:
        raise NotMergeable("each picture takes an expert of its own")

    def persistent_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return ()  # a round's expert is never trained again

    def state(self) -> Snapshot:
        own = {f"{name}.{site}": p.detach() for name in ("down", "up") for site, p in getattr(self, name)[-1].items()}
        return own | {"centre": self.centres[-1:], "seen": self.seen[-1:]}, {}

    def load(self, history: Sequence[Snapshot]) -> None:
        for tensors, _ in history:
            down, up = (
                nn.ParameterDict({key(site): tensors[f"{name}.{key(site)}"].clone() for site in self.sites})
                for name in ("down", "up")
            )
            self.append(down, up, tensors["centre"], tensors["seen"])
        self.requires_grad_(False)


class Gated(Toy):
    """One pair; its change is scaled by a gate of the class token, the logits by the mean of all gates."""

    mergeable = False
    calibrates = True

    def __init__(self, config: Any, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, sites, info)
        self.down, self.up = self.pairs(Task(0, "", (), (), 0, seed=0))
        self.gate = nn.ParameterDict({key(site): torch.zeros(site.inputs) for site in self.sites})

    def before_task(self, task: Task, statistics: Statistics) -> None:
        if task.index == 0:
            down, _ = self.pairs(task)
            self.down.load_state_dict(down.state_dict())
            with torch.no_grad():
                for gate in self.gate.values():
                    gate.normal_(generator=task.generator("gate"))

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor:
        gate = torch.sigmoid(x[:, 0].float() @ self.gate[key(site)])
        context.values[site.name] = gate
        change = (x @ self.down[key(site)].T.to(x.dtype)) @ self.up[key(site)].T.to(x.dtype)
        return gate[:, None, None].to(x.dtype) * change

    def dense(self, site: Site) -> Tensor | None:
        raise NotMergeable("the gates depend on the picture")

    def calibrate(self, logits: Tensor, context: Context) -> Tensor:
        return logits * torch.stack(list(context.values.values())).mean(0)[:, None]


class Folding(Toy):
    """A direction a round with one trained magnitude for all sites; finished rounds lie folded in the weights."""

    history = "all"

    def __init__(self, config: Any, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, sites, info)
        self.magnitude = nn.Parameter(torch.zeros(1))
        self.down, self.up = self.pairs(Task(0, "", (), (), 0, seed=0))
        self.past: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def before_task(self, task: Task, statistics: Statistics) -> None:
        down, up = self.pairs(task, up=0.1)
        self.down.load_state_dict(down.state_dict())
        self.up.load_state_dict(up.state_dict())
        self.magnitude.data.fill_(0.5)

    def after_task(self, task: Task, statistics: Statistics) -> None:
        self.last = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
        self.fold(self.last)
        self.magnitude.data.zero_()

    def fold(self, tensors: dict[str, Tensor]) -> None:
        for site in self.sites:
            down, up = tensors[f"down.{key(site)}"], tensors[f"up.{key(site)}"]
            change = tensors["magnitude"] * (up @ down) / (up.norm() * down.norm())
            self.past[site.name] = self.past[site.name] + change if site.name in self.past else change

    def folded(self, site: Site) -> Tensor | None:
        return self.past.get(site.name)

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor:
        down, up = self.down[key(site)], self.up[key(site)]
        scale = self.magnitude / (up.norm() * down.norm()).clamp(min=1e-12)
        return scale.to(x.dtype) * ((x @ down.T.to(x.dtype)) @ up.T.to(x.dtype))

    @torch.no_grad()
    def dense(self, site: Site) -> Tensor | None:
        down, up = self.down[key(site)], self.up[key(site)]
        live = self.magnitude * (up @ down) / (up.norm() * down.norm()).clamp(min=1e-12)
        return live + self.past.get(site.name, torch.zeros(()))

    def state(self) -> Snapshot:
        return self.last, {}

    def load(self, history: Sequence[Snapshot]) -> None:
        for tensors, _ in history:
            self.fold(tensors)


TOYS: dict[str, type[Toy]] = {"toy-experts": Experts, "toy-gated": Gated, "toy-folding": Folding}
pytestmark = pytest.mark.usefixtures("settled")
every_toy = pytest.mark.parametrize("name", TOYS)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in TOYS.items():
        monkeypatch.setitem(ADAPTERS._entries, name, entry)


@pytest.fixture
def data(picture_folder: Callable[..., Path]) -> tuple[Path, Path]:
    return picture_folder(["ant", "bee"], 8, name="first"), picture_folder(["cat", "dog"], 8, name="second")


def create(path: Path, name: str, objective: str = "finetune") -> Learner:
    return Learner.create(path, backbone="random:dinov2-tiny", method=f"{name}+{objective}", image_size=28)


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def logits(learner: Learner, batch: Tensor) -> Tensor:
    return learner.network.predict(batch)


@every_toy
@pytest.mark.parametrize("objective", ["finetune", "lwf", "ewc"])
def test_two_rounds_and_back(name: str, objective: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "state"
    learner = create(path, name, objective).learn(data[0], training=FAST).learn(data[1])
    together = logits(learner, images())
    torch.testing.assert_close(
        torch.cat([logits(learner, image[None]) for image in images()]), together, atol=1e-5, rtol=0
    )
    opened = Learner.open(path)
    assert torch.equal(logits(opened, images()), together)
    files = [opened.state.tensors(f"{task['folder']}/adapter.safetensors") for task in opened.record["tasks"]]
    assert files[0].keys() == files[1].keys()
    assert any(not torch.equal(files[0][key], files[1][key]) for key in files[0])


@every_toy
def test_the_change_is_merged_or_refused(name: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state", name).learn(data[0], training=FAST).learn(data[1])
    before = logits(learner, images())
    if TOYS[name].mergeable:
        torch.testing.assert_close(logits(learner.merge(), images()), before, atol=1e-5, rtol=0)
        learner.network.unmerge()
    else:
        with pytest.raises(NotMergeable):
            learner.merge()
    assert torch.equal(logits(learner, images()), before)
    with learner.network.bare():
        bare = learner.network.backbone(torch.zeros(1, 3, 28, 28)).pooled
    learner.network.refold()
    changed = learner.network.tokens(torch.zeros(1, 28, 28, 3, dtype=torch.uint8))[0].pooled
    assert not torch.equal(bare, changed)


class StopAt(Progress):
    """Asks this process to stop at a training step."""

    def __init__(self, step: int) -> None:
        self.left, self.training = step, False

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.training = what == "training"

    def advance(self, units: int, **facts: float) -> None:
        self.left -= self.training
        if self.training and self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@every_toy
@pytest.mark.parametrize("step", [1, 4, 6])
def test_an_interrupted_round_goes_on(name: str, step: int, data: tuple[Path, Path], tmp_path: Path) -> None:
    whole = create(tmp_path / "whole", name).learn(data[0], training=FAST).learn(data[1])
    broken = create(tmp_path / "broken", name).learn(data[0], training=FAST)
    with pytest.raises(Interrupted):
        broken.learn(data[1], progress=StopAt(step))
    assert len(broken.record["tasks"]) == 1
    broken = Learner.open(tmp_path / "broken").learn(data[1])
    for part in ("adapter", "head"):
        one, two = (
            learner.state.tensors(f"{learner.record['tasks'][1]['folder']}/{part}.safetensors")
            for learner in (whole, broken)
        )
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["lora", "full", *TOYS])
def test_the_teacher_is_the_network_before_the_round(
    name: str, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole round, while the student moves, the teacher says what the network said before it."""
    learner = create(tmp_path / "state", name, "lwf").learn(data[0], training=FAST)
    reference = Learner.open(tmp_path / "state").network
    told: list[tuple[Tensor, Tensor]] = []
    ask = Teacher.__call__

    def ask_and_compare(teacher: Teacher, batch: Tensor) -> Outputs:
        answer = ask(teacher, batch)
        with torch.no_grad():
            told.append((answer.logits, reference(batch).logits))
        return answer

    monkeypatch.setattr(Teacher, "__call__", ask_and_compare)
    learner.learn(data[1])
    assert len(told) == 3 * 2
    for answer, expected in told:
        assert answer.shape[1] == 2
        assert torch.equal(answer, expected)


def test_each_picture_takes_the_expert_of_its_round(data: tuple[Path, Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state", "toy-experts").learn(data[0], training=FAST).learn(data[1])
    chosen = []
    adapter = learner.network.adapter
    plan = adapter.plan
    adapter.plan = lambda pixels, network: chosen.append(plan(pixels, network)) or chosen[-1]  # type: ignore[func-returns-value]
    learner.predict([*sorted(data[0].rglob("*.png")), *sorted(data[1].rglob("*.png"))])
    experts = torch.cat([context.values["expert"] for context in chosen])
    assert (experts == torch.tensor([0] * 16 + [1] * 16)).float().mean() > 0.8
    assert learner.network.slot.context.values == {}  # nothing stays behind on the network
