"""Adapters of other shapes than those that are there: they do nothing useful, and nothing knows them by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.adapters.base import Adapter, Context, Statistics, choose_sites
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.errors import NotMergeable
from sapwood.task import Snapshot, Task

RANK = 2


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


@torch.no_grad()
def fill(adapter: Adapter, seed: int) -> None:
    """Stand in for training: every trained tensor moves; sites and factors by different amounts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            size = 0.1 + torch.rand((), generator=generator)
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
