"""C-LoRA (arXiv 2502.17920): one low-rank pair for all rounds, with a growing route between its factors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sapwood.adapters.base import Adapter, Context, Statistics, choose_sites, site_key
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.functional.factorise import Pair
from sapwood.functional.routes import protected_directions, route_overlap, routed_delta
from sapwood.settings import check
from sapwood.task import Snapshot, Task

_ENERGY = 0.9


@dataclass(frozen=True)
class RoutedConfig:
    """Shape and penalty of C-LoRA.

    Attributes:
        rank: r, inner width of the factors and side of the routes.
        alpha: the change is scaled by alpha / rank.
        targets: projections that are adapted: q, k, v, o, fc1, fc2.
        blocks: ``all``, indices or ranges: ``0,1``, ``-4:``.
        penalty: strength of the orthogonality between the old route and the new one.
        protected: how many directions of the old route the new one shall leave alone: ``half``, or as few as hold 90 %
            of its ``energy`` (squared singular values), at most r - 1.
        penalty_form: what is made small: ``directions`` ||U_kᵀ R_delta||², ``routes`` ||R_oldᵀ R_delta||² or
            ``weights`` ||R_oldᵀ Uᵀ U R_delta||², of which the up factor gets gradients too.
        detach_old_route: the shared factors get no gradients through the old route; the outputs are the same.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")
    blocks: str = "all"
    penalty: float = 0.01
    protected: Literal["half", "energy"] = "half"
    penalty_form: Literal["directions", "routes", "weights"] = "directions"
    detach_old_route: bool = False

    def __post_init__(self) -> None:
        check(
            (self.rank >= 1, f"adapter.rank must be >= 1, got {self.rank}"),
            (self.alpha > 0, f"adapter.alpha must be > 0, got {self.alpha}"),
            (0 <= self.penalty < math.inf, f"adapter.penalty must be >= 0 and finite, got {self.penalty}"),
        )


@dataclass(frozen=True)
class Route:
    """The routing matrices of a site after a round, to be looked at.

    Attributes:
        old: [r, r], of all rounds so far, the last one included.
        delta: [r, r], what the last round added.
        overlap: share of ``delta`` in the directions that were protected, 0..1; None after the first round.
    """

    old: Tensor
    delta: Tensor
    overlap: float | None


class Routed(Adapter):
    """W = W0 + (alpha / r) U (R_old + R_delta) D, with U and D shared by all rounds and R_old frozen.

    The first round starts at R_old = 0, R_delta = I, D = 0; after each one R_old takes in R_delta. Memory, step and
    inference do not depend on the number of rounds.

    Reconstructed, for want of the full text: rank, sites and scale; U Kaiming-uniform(sqrt 5) over its r inputs;
    R_delta exactly 0 at the start of later rounds, so that a new round begins where the last one ended; how many
    directions are protected (``protected``), what the penalty measures (``penalty_form``), U_k kept from the start of a
    round to its end; whether the factors also learn through the old route (``detach_old_route``).
    """

    Config = RoutedConfig
    summary = "one shared low-rank pair, a frozen route and a trained one between its factors"
    growth = "nothing"

    def __init__(self, config: RoutedConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, choose_sites(sites, config.targets, config.blocks), info)
        rank = config.rank
        self.scale = config.alpha / rank
        self.down = nn.ParameterDict({site_key(site): torch.zeros(rank, site.inputs) for site in self.sites})
        self.up = nn.ParameterDict({site_key(site): torch.zeros(site.outputs, rank) for site in self.sites})
        self.delta = nn.ParameterDict({site_key(site): torch.zeros(rank, rank) for site in self.sites})
        self.old: Tensor
        self.last: Tensor
        self.register_buffer("old", torch.zeros(len(self.sites), rank, rank))
        self.register_buffer("last", torch.zeros(len(self.sites), rank, rank))
        self.index = {site.name: number for number, site in enumerate(self.sites)}
        # What the penalty multiplies the new routes with [sites, r, r]; there only while a later round is learned.
        self.guard: Tensor | None = None

    @torch.no_grad()
    def before_task(self, task: Task, statistics: Statistics) -> None:
        """Draw the factors of the first round; later ones take the directions to protect from the old route."""
        for delta in self.delta.values():
            delta.copy_(torch.eye(len(delta)) if task.index == 0 else torch.zeros_like(delta))
        if task.index > 0:
            form = self.config.penalty_form
            self.guard = self.old.clone() if form != "directions" else torch.stack([self._padded(r) for r in self.old])
            return
        generator = task.generator("adapter")
        bound = 1 / math.sqrt(self.config.rank)
        for site in self.sites:
            drawn = torch.empty(site.outputs, self.config.rank).uniform_(-bound, bound, generator=generator)
            self.up[site_key(site)].copy_(drawn)
            self.down[site_key(site)].zero_()

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor:
        """scale * U (R_old + R_delta) D x, for x [..., in]."""
        key, old = site_key(site), self.old[self.index[site.name]]
        detach = self.config.detach_old_route and self.guard is not None
        return routed_delta(x, self.down[key], old, self.delta[key], self.up[key], self.scale, detach_old=detach)

    def penalty(self) -> Tensor | None:
        """penalty * sum over sites of ||U_kᵀ R_delta||² or what ``penalty_form`` names; None in the first round."""
        if self.guard is None or self.config.penalty == 0:
            return None
        routes = self._by_site(self.delta)
        if self.config.penalty_form == "weights":
            routes = torch.stack([up.T @ up for up in (self.up[site_key(site)] for site in self.sites)]) @ routes
        return self.config.penalty * (self.guard.mT @ routes).square().sum()

    @torch.no_grad()
    def after_task(self, task: Task, statistics: Statistics) -> None:
        """R_old takes in R_delta, which is kept to be looked at."""
        self.last.copy_(self._by_site(self.delta))
        self.old.add_(self.last)
        for delta in self.delta.values():
            delta.zero_()
        self.guard = None

    @torch.no_grad()
    def dense(self, site: Site) -> Tensor:
        """scale * U (R_old + R_delta) D."""
        key = site_key(site)
        return self.scale * self.up[key] @ ((self.old[self.index[site.name]] + self.delta[key]) @ self.down[key])

    @torch.no_grad()
    def factors(self, site: Site) -> Pair:
        """The routes go into the up factor: (D, scale * U (R_old + R_delta))."""
        key = site_key(site)
        route = self.old[self.index[site.name]] + self.delta[key]
        return self.down[key].clone(), self.scale * self.up[key] @ route

    def _by_site(self, routes: nn.ParameterDict) -> Tensor:
        """[sites, r, r] in the order of the sites; that of the dictionary is another one (block_10 before block_2)."""
        return torch.stack([routes[site_key(site)] for site in self.sites])

    def routes(self) -> dict[str, Route]:
        """Routing matrices of the last round, by the name of the site."""
        return {site.name: self._route(self.old[number], self.last[number]) for site, number in self._numbered()}

    def protected(self, route: Tensor) -> Tensor:
        """Directions [r, k] of an old route [r, r] that the next one shall leave alone."""
        return protected_directions(route, energy=_ENERGY if self.config.protected == "energy" else None)

    def persistent_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The shared factors; every round's new route starts from zero."""
        return ((name, parameter) for name, parameter in self.named_parameters() if not name.startswith("delta."))

    def state(self) -> Snapshot:
        """Factors, the route of all rounds and that of the last; the sites in the order of the routes."""
        tensors, meta = super().state()
        names = [site.name for site in self.sites]
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("delta.")}, meta | {
            "sites": names
        }

    def load(self, history: Sequence[Snapshot]) -> None:
        """Restore factors and routes."""
        if history:
            none = {f"delta.{key}": torch.zeros_like(delta) for key, delta in self.delta.items()}
            self.load_state_dict(history[-1][0] | none)

    def _numbered(self) -> list[tuple[Site, int]]:
        return [(site, self.index[site.name]) for site in self.sites]

    def _route(self, old: Tensor, last: Tensor) -> Route:
        before = old - last
        overlap = route_overlap(self.protected(before), last) if before.any() else None
        return Route(old.clone(), last.clone(), overlap)

    def _padded(self, route: Tensor) -> Tensor:
        """U_k with zero columns up to r, so that sites with different k stack."""
        directions = self.protected(route)
        return nn.functional.pad(directions, (0, len(route) - directions.shape[1]))
