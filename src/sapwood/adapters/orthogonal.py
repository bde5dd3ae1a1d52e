"""O-LoRA (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152): rounds in directions orthogonal to each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sapwood.adapters.base import Adapter, Context, Statistics, choose_sites, site_key
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.functional.directions import row_overlap
from sapwood.functional.factorise import Pair, concatenate
from sapwood.functional.low_rank import compose, lora_delta
from sapwood.settings import check
from sapwood.task import Snapshot, Task


@dataclass(frozen=True)
class OrthogonalConfig:
    """Shape and penalties of O-LoRA.

    Attributes:
        rank: r, inner width of each round's factors.
        alpha: the change is scaled by alpha / rank.
        targets: projections that are adapted: q, k, v, o, fc1, fc2.
        blocks: ``all``, indices or ranges: ``0,1``, ``-4:``.
        l1: strength of the orthogonality between the new rows A and all old ones; nothing in the first round.
        l2: strength of the sum of the norms of the new factors.
        entries: the orthogonality sums ``absolute`` entries of A_old A_newᵀ (the official code) or ``squared`` ones
            (the paper's text).
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")
    blocks: str = "all"
    l1: float = 0.5
    l2: float = 0.0
    entries: Literal["absolute", "squared"] = "absolute"

    def __post_init__(self) -> None:
        check(
            (self.rank >= 1, f"adapter.rank must be >= 1, got {self.rank}"),
            (self.alpha > 0, f"adapter.alpha must be > 0, got {self.alpha}"),
            (0 <= self.l1 < math.inf, f"adapter.l1 must be >= 0 and finite, got {self.l1}"),
            (0 <= self.l2 < math.inf, f"adapter.l2 must be >= 0 and finite, got {self.l2}"),
        )


class Orthogonal(Adapter):
    """W = W0 + (alpha / r) sum_k B_k A_k, a new pair a round; old ones are frozen and lie in the weights.

    The loss gains l1 * sum |A_old A_newᵀ| over sites, A_old the rows of all earlier rounds, and l2 * the norms of the
    new factors. The step is that of one pair, but for the penalty; inference costs what the backbone costs.

    Reconstructed: the method is one for language models; rank, alpha and sites here are those of the other adapters.
    Norms of factors are taken one by one, Frobenius.
    """

    Config = OrthogonalConfig
    summary = "a low-rank pair per round, orthogonal to those of earlier rounds"
    growth = "2 d r per site and round"
    history = "all"

    def __init__(self, config: OrthogonalConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, choose_sites(sites, config.targets, config.blocks), info)
        self.scale = config.alpha / config.rank
        self.down = nn.ParameterDict({site_key(site): torch.zeros(config.rank, site.inputs) for site in self.sites})
        self.up = nn.ParameterDict({site_key(site): torch.zeros(site.outputs, config.rank) for site in self.sites})
        # Factors of all finished rounds, A [t r, in] and B [out, t r]. No buffers: a checkpoint need not repeat them.
        self.past: dict[str, tuple[Tensor, Tensor]] = {}
        self.own: Snapshot | None = None
        self.learning = False

    @torch.no_grad()
    def before_task(self, task: Task, statistics: Statistics) -> None:
        """Draw A and zero B: the function starts as it was."""
        generator = task.generator("adapter")
        for site in self.sites:
            key, bound = site_key(site), 1 / math.sqrt(site.inputs)
            drawn = torch.empty(self.config.rank, site.inputs).uniform_(-bound, bound, generator=generator)
            self.down[key].copy_(drawn)
            self.up[key].zero_()
            if key in self.past:
                down, up = self.past[key]
                self.past[key] = down.to(self.down[key]), up.to(self.up[key])
        self.learning = True

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor | None:
        """scale * (x Aᵀ) Bᵀ of the live pair, for x [..., in]."""
        # Between rounds B is zero; with gradients it is run all the same, by whoever measures what a round will take.
        if not (self.learning or torch.is_grad_enabled()):
            return None
        down, up = self.down[site_key(site)], self.up[site_key(site)]
        return lora_delta(x, down.to(x.dtype), up.to(x.dtype), self.scale)

    def penalty(self) -> Tensor | None:
        """l1 * sum |A_old A_newᵀ| + l2 * sum (||A_new|| + ||B_new||), over sites; None where both are nothing."""
        if not self.learning:
            return None
        terms = []
        if self.past and self.config.l1 > 0:
            overlaps = [row_overlap(self.past[key][0], new, self.config.entries) for key, new in self.down.items()]
            terms.append(self.config.l1 * torch.stack(overlaps).sum())
        if self.config.l2 > 0:
            norms = [factor.norm() for factor in (*self.down.values(), *self.up.values())]
            terms.append(self.config.l2 * torch.stack(norms).sum())
        return torch.stack(terms).sum() if terms else None

    @torch.no_grad()
    def after_task(self, task: Task, statistics: Statistics) -> None:
        """Freeze the round's pair with the others, and make the live part nothing."""
        self.own = super().state()
        self._append(self.own[0])
        for factor in self.up.values():
            factor.zero_()
        self.learning = False

    def folded(self, site: Site) -> Tensor | None:
        """The sum of the finished rounds' scale * B A; None without any."""
        key = site_key(site)
        if key not in self.past:
            return None
        down, up = self.past[key]  # rounds from a file lie on the CPU, the one just learned where the network is
        return compose(down.to(self.down[key]), up.to(self.up[key]), self.scale)

    @torch.no_grad()
    def dense(self, site: Site) -> Tensor:
        """Past and live: scale * B A."""
        live = compose(self.down[site_key(site)], self.up[site_key(site)], self.scale)
        past = self.folded(site)
        return live if past is None else live + past

    @torch.no_grad()
    def factors(self, site: Site) -> Pair:
        """The pairs of all rounds as one."""
        key = site_key(site)
        pairs = [self.past[key]] if key in self.past else []
        pairs.append((self.down[key], self.up[key]))
        return concatenate([(down.to(self.up[key]), self.scale * up.to(self.up[key])) for down, up in pairs])

    def persistent_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """None: a round's pair is never trained again."""
        return ()

    def state(self) -> Snapshot:
        """The pair of the last round."""
        return self.own or super().state()

    def load(self, history: Sequence[Snapshot]) -> None:
        """Restore the pairs of every round."""
        self.past, self.own = {}, None
        for tensors, meta in history:
            self._append(tensors)
            self.own = dict(tensors), meta

    def _append(self, tensors: dict[str, Tensor]) -> None:
        for key in self.down:
            down, up = tensors[f"down.{key}"], tensors[f"up.{key}"]
            if key in self.past:
                earlier = self.past[key]
                down, up = torch.cat([earlier[0].to(down), down]), torch.cat([earlier[1].to(up), up], 1)
            self.past[key] = down, up
