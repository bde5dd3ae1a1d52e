"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): one pair of low-rank factors per site, kept over all rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sapwood.adapters.base import SITE_KINDS, Adapter, Context, Statistics, choose_sites, site_key
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.functional.factorise import Pair, concatenate
from sapwood.functional.low_rank import compose, conv_lora_delta, lora_delta
from sapwood.settings import check
from sapwood.task import Snapshot, Task


@dataclass(frozen=True)
class LoraConfig:
    """Shape of a LoRA module.

    Attributes:
        rank: r, inner width of the factors.
        alpha: the change is scaled by alpha / rank.
        targets: layers that are adapted: q, k, v, o, fc1, fc2; of a ResNet conv1, conv2, conv3, and q, k, v, o stand
            there for all convolutions wider than 1x1.
        blocks: ``all``, indices or ranges: ``0,1``, ``-4:``.
        reinit: every round has factors of its own, folded into the weights after it; else one pair goes on learning.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")
    blocks: str = "all"
    reinit: bool = False

    def __post_init__(self) -> None:
        check(
            (self.rank >= 1, f"adapter.rank must be >= 1, got {self.rank}"),
            (self.alpha > 0, f"adapter.alpha must be > 0, got {self.alpha}"),
        )


class Lora(Adapter):
    """W = W0 + (alpha / r) B A, with A [r, in] Kaiming-uniform(sqrt 5) and B [out, r] zero at the start.

    Of a convolution, A is one to r channels with the layer's kernel, stride, padding and dilation, [r, in, kh, kw],
    and B a 1x1, [out, r, 1, 1], as in PEFT.

    The same A and B go on learning in every round (sequential LoRA; CLoRA of segmentation). Memory, step and
    inference do not depend on the number of rounds. With ``reinit`` each round draws its own and folds them into the
    weights: training and inference stay as they are, a state folder keeps one pair a round.
    """

    Config = LoraConfig
    summary = "one low-rank pair per site, reused by every round"
    growth = "nothing; with reinit a pair a site and round, folded"
    site_kinds = SITE_KINDS

    def __init__(self, config: LoraConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, choose_sites(sites, config.targets, config.blocks), info)
        self.scale = config.alpha / config.rank
        self.past: list[dict[str, Tensor]] = []
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for site in self.sites:
            size, points = (site.kernel.size, (1, 1)) if site.kernel else ((), ())
            self.down[site_key(site)] = torch.zeros(config.rank, site.inputs, *size)
            self.up[site_key(site)] = torch.zeros(site.outputs, config.rank, *points)

    @property
    def history(self) -> Literal["last", "all"]:  # type: ignore[override]
        """Folded rounds lie in the files of each."""
        return "all" if self.config.reinit else "last"

    def before_task(self, task: Task, statistics: Statistics) -> None:
        """Draw A and zero B, before the first round or before each: the function starts as it was."""
        if task.index > 0 and not self.config.reinit:
            return
        generator = task.generator("adapter")
        with torch.no_grad():
            for site in self.sites:
                down = self.down[site_key(site)]
                bound = 1 / math.sqrt(down[0].numel())
                # Drawn on the CPU, so that the same seed gives the same factors on every device.
                down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
                self.up[site_key(site)].zero_()

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor:
        """scale * (x Aᵀ) Bᵀ, for x [..., in]; of a convolution for x [B, in, h, w]."""
        down, up = (factors[site_key(site)].to(x.dtype) for factors in (self.down, self.up))
        kernel = site.kernel
        if kernel is None:
            return lora_delta(x, down, up, self.scale)
        return conv_lora_delta(
            x, down, up, self.scale, stride=kernel.stride, padding=kernel.padding, dilation=kernel.dilation
        )

    def after_task(self, task: Task, statistics: Statistics) -> None:
        """With ``reinit``: keep the round's factors as past, and make the live part nothing."""
        if self.config.reinit:
            self.past.append(super().state()[0])
            self._silence()

    def folded(self, site: Site) -> Tensor | None:
        """The sum of the past rounds' scale * B A; None without any."""
        key = site_key(site)
        like = self.up[key]  # rounds from a file lie on the CPU, the one just learned where the network is
        changes = [compose(past[f"down.{key}"].to(like), past[f"up.{key}"].to(like), self.scale) for past in self.past]
        return torch.stack(changes).sum(0) if changes else None

    def dense(self, site: Site) -> Tensor:
        """Past and live: scale * B A."""
        live = compose(self.down[site_key(site)].detach(), self.up[site_key(site)].detach(), self.scale)
        past = self.folded(site)
        return live if past is None else live + past.to(live)

    @torch.no_grad()
    def factors(self, site: Site) -> Pair:
        """Past and live pairs as one."""
        key = site_key(site)
        pairs = [(past[f"down.{key}"].to(self.up[key]), past[f"up.{key}"].to(self.up[key])) for past in self.past]
        return concatenate([(down, self.scale * up) for down, up in (*pairs, (self.down[key], self.up[key]))])

    def persistent_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All, unless every round has its own."""
        return () if self.config.reinit else self.named_parameters()

    def state(self) -> Snapshot:
        """The factors of the last round."""
        return (dict(self.past[-1]), {}) if self.past else super().state()

    def load(self, history: Sequence[Snapshot]) -> None:
        """Restore the live pair, or the past of every round."""
        if not self.config.reinit:
            super().load(history)
            return
        self.past = [dict(tensors) for tensors, _ in history]
        self._silence()

    def _silence(self) -> None:
        with torch.no_grad():
            for factor in self.up.values():
                factor.zero_()
