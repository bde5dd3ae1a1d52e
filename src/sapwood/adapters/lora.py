"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): one pair of low-rank factors per site, kept over all rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sapwood.adapters.base import Adapter, Context, choose_sites
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.functional.low_rank import compose, lora_delta
from sapwood.settings import check
from sapwood.task import Task


@dataclass(frozen=True)
class LoraConfig:
    """Shape of a LoRA module.

    Attributes:
        rank: r, inner width of the factors.
        alpha: the change is scaled by alpha / rank.
        targets: projections that are adapted: q, k, v, o, fc1, fc2.
        blocks: ``all``, indices or ranges: ``0,1``, ``-4:``.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")
    blocks: str = "all"

    def __post_init__(self) -> None:
        check(
            (self.rank >= 1, f"adapter.rank must be >= 1, got {self.rank}"),
            (self.alpha > 0, f"adapter.alpha must be > 0, got {self.alpha}"),
        )


class Lora(Adapter):
    """W = W0 + (alpha / r) B A, with A [r, in] Kaiming-uniform(sqrt 5) and B [out, r] zero at the start.

    The same A and B go on learning in every round (sequential LoRA; CLoRA of segmentation). Memory, step and
    inference do not depend on the number of rounds.
    """

    Config = LoraConfig
    summary = "one low-rank pair per site, reused by every round"
    growth = "nothing"

    def __init__(self, config: LoraConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, choose_sites(sites, config.targets, config.blocks), info)
        self.scale = config.alpha / config.rank
        self.down = nn.ParameterDict({_key(site): torch.zeros(config.rank, site.inputs) for site in self.sites})
        self.up = nn.ParameterDict({_key(site): torch.zeros(site.outputs, config.rank) for site in self.sites})

    def before_task(self, task: Task) -> None:
        """Draw A and zero B before the first round, so that the function starts as the backbone's own."""
        if task.index > 0:
            return
        generator = task.generator("adapter")
        with torch.no_grad():
            for site in self.sites:
                bound = 1 / math.sqrt(site.inputs)
                # Drawn on the CPU, so that the same seed gives the same factors on every device.
                drawn = torch.empty(self.config.rank, site.inputs).uniform_(-bound, bound, generator=generator)
                self.down[_key(site)].copy_(drawn)
                self.up[_key(site)].zero_()

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor:
        """scale * (x Aᵀ) Bᵀ, for x [..., in]."""
        down, up = self.down[_key(site)], self.up[_key(site)]
        return lora_delta(x, down.to(x.dtype), up.to(x.dtype), self.scale)

    def dense(self, site: Site) -> Tensor:
        """scale * B A."""
        return compose(self.down[_key(site)].detach(), self.up[_key(site)].detach(), self.scale)


def _key(site: Site) -> str:
    # ParameterDict keys may not hold dots.
    return site.name.replace(".", "_")
