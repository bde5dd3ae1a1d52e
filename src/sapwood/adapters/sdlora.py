"""SD-LoRA (Wu et al., ICLR 2025, arXiv 2501.13198): a direction a round, whose magnitudes all go on learning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.adapters.base import Adapter, Context, Statistics, choose_sites, site_key
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.functional.directions import fit_on, pair_products, unit_pair
from sapwood.functional.factorise import Pair, concatenate
from sapwood.settings import check
from sapwood.task import Snapshot, Task


@dataclass(frozen=True)
class SDLoraConfig:
    """Shape of SD-LoRA and its variants.

    Attributes:
        rank: r, inner width of a round's factors.
        targets: projections that are adapted: q, k, v, o, fc1, fc2.
        blocks: ``all``, indices or ranges: ``0,1``, ``-4:``.
        norm: what makes a finished pair a direction: ||A|| ||B|| (``factors``, the official code) or ||B A||
            (``product``, the paper).
        carry_magnitudes: magnitudes go on from round to round, and a new round starts where the last one ended; else
            all begin anew at ``magnitude`` (the official code).
        magnitude: of a new direction.
        later_ranks: ranks after the first ``rank_every`` rounds, each for as many, the last for all that follow (the RR
            variant: 8,6 after 10); empty keeps ``rank``.
        rank_every: see ``later_ranks``.
        merge_threshold: a round whose change is, but for this share of its norm, a combination of old directions is
            stored as a change of their magnitudes (the KD variant; 0.01 is reasonable); None stores every round.
    """

    rank: int = 10
    targets: tuple[str, ...] = ("q", "v")
    blocks: str = "all"
    norm: Literal["factors", "product"] = "factors"
    carry_magnitudes: bool = True
    magnitude: float = 0.8
    later_ranks: tuple[int, ...] = ()
    rank_every: int = 4
    merge_threshold: float | None = None

    def __post_init__(self) -> None:
        threshold = self.merge_threshold
        check(
            (self.rank >= 1, f"adapter.rank must be >= 1, got {self.rank}"),
            (0 < self.magnitude < math.inf, f"adapter.magnitude must be > 0 and finite, got {self.magnitude}"),
            (all(rank >= 1 for rank in self.later_ranks), f"adapter.later_ranks must be >= 1, got {self.later_ranks}"),
            (self.rank_every >= 1, f"adapter.rank_every must be >= 1, got {self.rank_every}"),
            (threshold is None or 0 < threshold < 1, f"adapter.merge_threshold must be in (0, 1), got {threshold}"),
            (
                threshold is None or self.carry_magnitudes,
                "adapter.merge_threshold needs adapter.carry_magnitudes: a merged round lives in the magnitudes",
            ),
        )


class SDLora(Adapter):
    """W = W0 + sum_k a_k dW_k + a_t B_t A_t: old directions dW_k are frozen, all magnitudes a train.

    A magnitude belongs to a round and is shared by all sites. A finished round's pair becomes a direction by ``norm``,
    site by site. So that the change stays what it was, its norms go elsewhere: their root mean square over the sites
    into the magnitude, their ratios into ``weights``. With ``carry_magnitudes`` that is how the next round takes them
    up; without, every magnitude is 0.8 again and every ratio 1, and the function jumps at the boundary, as officially.

    The past lies in the weights with the magnitudes it had when the last round ended. A live round adds only the
    difference that its magnitudes make, through all old factors at once: the teacher shares the weights, the number
    of rounds costs a wider product while training, and nothing afterwards.

    Reconstructed: the carried magnitudes. The KD variant: the new change, all sites together, is fitted by least
    squares in the inner product of the weights; its threshold; that the fit takes the place of a merged round's change.
    """

    Config = SDLoraConfig
    summary = "a low-rank direction per round; magnitudes of all of them train"
    growth = "2 d r per site and round (none for a merged round), a magnitude per round"
    history = "all"

    def __init__(self, config: SDLoraConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, choose_sites(sites, config.targets, config.blocks), info)
        self.number = {site.name: number for number, site in enumerate(self.sites)}
        self.down = nn.ParameterDict({site_key(site): torch.zeros(config.rank, site.inputs) for site in self.sites})
        self.up = nn.ParameterDict({site_key(site): torch.zeros(site.outputs, config.rank) for site in self.sites})
        self.magnitude = nn.Parameter(torch.tensor(float(config.magnitude)))
        self.magnitudes = nn.Parameter(torch.zeros(0), requires_grad=False)
        # Unit factors of all directions, A [R, in] and B [out, R]. No buffers: a checkpoint need not repeat them.
        self.past: dict[str, tuple[Tensor, Tensor]] = {}
        self.groups: Tensor
        self.weights: Tensor
        self.inside: Tensor
        self.register_buffer("groups", torch.zeros(0, dtype=torch.int64))  # the direction of each inner index, [R]
        self.register_buffer("weights", torch.zeros(0, len(self.sites)))  # of directions at sites, by which a counts
        self.register_buffer("inside", torch.zeros(0, len(self.sites)))  # a * weight as it lies in the weights
        self.own: Snapshot | None = None
        self.learning = False

    @torch.no_grad()
    def before_task(self, task: Task, statistics: Statistics) -> None:
        """Draw A, zero B; the magnitudes stay or begin anew."""
        ranks = (self.config.rank, *self.config.later_ranks)
        rank = ranks[min(task.index // self.config.rank_every, len(ranks) - 1)]
        device, generator = self.magnitude.device, task.generator("adapter")
        for site in self.sites:
            key, bound = site_key(site), 1 / math.sqrt(site.inputs)
            drawn = torch.empty(rank, site.inputs).uniform_(-bound, bound, generator=generator)
            self.down[key] = nn.Parameter(drawn.to(device))
            self.up[key] = nn.Parameter(torch.zeros(site.outputs, rank, device=device))
            if key in self.past:
                down, up = self.past[key]
                self.past[key] = down.to(device), up.to(device)
        self.magnitude.fill_(self.config.magnitude)
        if not self.config.carry_magnitudes:
            self.magnitudes.fill_(self.config.magnitude)
            self.weights.fill_(1)
        self.learning = True

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor | None:
        """a_t (x Aᵀ) Bᵀ of the live pair and what the magnitudes have moved since the last round, for x [..., in]."""
        # Between rounds B is zero; with gradients it is run all the same, by whoever measures what a round will take.
        if not (self.learning or torch.is_grad_enabled()):
            return None
        key, dtype = site_key(site), x.dtype
        inner = F.linear(x, self.down[key].to(dtype)) * self.magnitude.to(dtype)
        change = F.linear(inner, self.up[key].to(dtype))
        if self.learning and self.past:
            # A product of its own, not one with the live pair: frozen factors need no gradient.
            down, up = self.past[key]
            moved = (self._coefficients(site) - self.inside[:, self.number[site.name]])[self.groups]
            change += F.linear(F.linear(x, down.to(dtype)) * moved.to(dtype), up.to(dtype))
        return change

    @torch.no_grad()
    def after_task(self, task: Task, statistics: Statistics) -> None:
        """Make the pair a direction, or find it among the old ones, and the live part nothing."""
        # In the order of the sites, like ``weights``; that of the dictionaries is another (block_10 before block_2).
        keys = [site_key(site) for site in self.sites]
        pairs = {key: unit_pair(self.down[key], self.up[key], self.config.norm) for key in keys}
        sizes = torch.stack([size for _, _, size in pairs.values()])
        common = sizes.square().mean().sqrt()
        own = {f"down.{key}": down for key, (down, _, _) in pairs.items()}
        own |= {f"up.{key}": up for key, (_, up, _) in pairs.items()}
        own["weights"] = (sizes / common if common > 0 else sizes).to(self.weights)
        magnitude = self.magnitude * common.to(self.magnitude)
        if (shares := self._shares(own, magnitude)) is None:
            self._append(own)
            magnitudes = torch.cat([self.magnitudes, magnitude[None]])
        else:
            own, magnitudes = {}, self.magnitudes + shares
        self._settle(magnitudes)
        self.own = own | {"magnitudes": magnitudes.detach().clone()}, {}
        for factor in self.up.values():
            factor.zero_()
        self.learning = False

    def folded(self, site: Site) -> Tensor | None:
        """The finished rounds with the magnitudes of the last one's end; None without any."""
        return self._composed(site, self.inside[:, self.number[site.name]]) if self.past else None

    @torch.no_grad()
    def dense(self, site: Site) -> Tensor:
        """The past with the magnitudes of now, and the live pair."""
        key = site_key(site)
        live = self.magnitude * self.up[key] @ self.down[key]
        return live + self._composed(site, self._coefficients(site)) if self.past else live

    @torch.no_grad()
    def factors(self, site: Site) -> Pair:
        """All directions beside each other, each times its magnitude, and the live pair."""
        key = site_key(site)
        pairs = [(self.down[key], self.magnitude * self.up[key])]
        if key in self.past:
            down, up = (factor.to(self.magnitudes) for factor in self.past[key])
            pairs.insert(0, (down, up * self._coefficients(site)[self.groups]))
        return concatenate(pairs)

    def persistent_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The magnitudes of finished rounds, where they are carried on and mean the same after the round."""
        stays = self.config.carry_magnitudes and self.config.merge_threshold is None
        return [("magnitudes", self.magnitudes)] if stays else []

    def state(self) -> Snapshot:
        """The direction of the last round, unless it was merged, and the magnitudes of all."""
        if self.own is not None:
            return self.own
        live = {name: value.detach() for name, value in self.named_parameters() if name.startswith(("down.", "up."))}
        return live | {"weights": torch.zeros(len(self.sites)), "magnitudes": self.magnitude.detach()[None]}, {}

    def load(self, history: Sequence[Snapshot]) -> None:
        """Restore the directions of every round, and the magnitudes of the last."""
        self.past, self.own = {}, None
        self.groups, self.weights = self.groups[:0], self.weights[:0]
        for tensors, meta in history:
            if not self.config.carry_magnitudes:
                self.weights = torch.ones_like(self.weights)
            if "weights" in tensors:
                self._append(tensors)
            self.own = dict(tensors), meta
        if self.own is not None:
            self._settle(self.own[0]["magnitudes"])

    def _coefficients(self, site: Site) -> Tensor:
        """What each direction counts at a site with the magnitudes of now, [T]."""
        return self.magnitudes * self.weights[:, self.number[site.name]]

    def _composed(self, site: Site, coefficients: Tensor) -> Tensor:
        """All directions in one weight [out, in]."""
        down, up = (factor.to(self.magnitudes) for factor in self.past[site_key(site)])
        return (up * coefficients[self.groups]) @ down

    def _append(self, tensors: Mapping[str, Tensor]) -> None:
        for key in self.down:
            down, up = tensors[f"down.{key}"], tensors[f"up.{key}"]
            if key in self.past:
                earlier = self.past[key]
                down, up = torch.cat([earlier[0].to(down), down]), torch.cat([earlier[1].to(up), up], 1)
            self.past[key] = down, up
        self.groups = self._groups(tensors)
        self.weights = torch.cat([self.weights, tensors["weights"][None].to(self.weights)])

    def _groups(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """``groups`` with one more direction."""
        rank = len(tensors[f"down.{next(iter(self.down))}"])
        return torch.cat([self.groups, self.groups.new_full((rank,), len(self.weights))])

    def _settle(self, magnitudes: Tensor) -> None:
        """The past lies in the weights with these magnitudes."""
        self.magnitudes = nn.Parameter(magnitudes.detach().clone(), requires_grad=len(magnitudes) > 0)
        self.inside = self.magnitudes.detach()[:, None] * self.weights

    def _shares(self, own: Mapping[str, Tensor], magnitude: Tensor) -> Tensor | None:
        """By how much old magnitudes move to do what the new direction does [T]; None where they cannot."""
        if self.config.merge_threshold is None or not self.past:
            return None
        groups = self._groups(own)
        weights = torch.cat([self.weights, own["weights"][None]]).double().cpu()
        products = torch.zeros(len(weights), len(weights), dtype=torch.float64)
        for number, key in enumerate(map(site_key, self.sites)):
            down, up = self.past[key]
            stacked = torch.cat([down, own[f"down.{key}"]]), torch.cat([up, own[f"up.{key}"]], 1)
            products += torch.outer(weights[:, number], weights[:, number]) * pair_products(*stacked, groups).cpu()
        cross, energy = products[:-1, -1], products[-1, -1]
        shares, residual = fit_on(products[:-1, :-1], cross, energy)
        return magnitude * shares.to(self.magnitudes) if residual < self.config.merge_threshold else None
