"""CoLoR (Wistuba et al. 2023, arXiv 2311.17601): a low-rank expert a round, chosen for each picture by its features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.adapters.base import Adapter, Context, Statistics, choose_sites, site_key
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.errors import NotMergeable
from sapwood.functional.low_rank import compose, lora_delta
from sapwood.settings import check
from sapwood.task import Snapshot, Task


@dataclass(frozen=True)
class ExpertsConfig:
    """Shape of the experts, and how one is chosen.

    Attributes:
        rank: r, inner width of the factors.
        alpha: an expert's change is scaled by alpha / rank.
        targets: projections that are adapted: q, k, v, o, fc1, fc2.
        blocks: ``all``, indices or ranges: ``0,1``, ``-4:``.
        clusters: centres that stand for a round's pictures; fewer where it has not as many different ones.
        identify: which features choose: ``frozen``, those of the bare backbone, or ``first``, those of the network
            with the first round's expert (CoLoR++).
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")
    blocks: str = "all"
    clusters: int = 5
    identify: Literal["frozen", "first"] = "frozen"

    def __post_init__(self) -> None:
        check(
            (self.rank >= 1, f"adapter.rank must be >= 1, got {self.rank}"),
            (self.alpha > 0, f"adapter.alpha must be > 0, got {self.alpha}"),
            (self.clusters >= 1, f"adapter.clusters must be >= 1, got {self.clusters}"),
        )


class Experts(Adapter):
    """W = W0 + (alpha / r) B_t A_t, where t is the round whose pictures are most like this one.

    Every round trains a pair of its own on the bare backbone, so nothing that was learned is ever changed. A round is
    remembered by the k-means centres of its pictures' pooled features, scaled to length one (the centres are not); a
    picture takes the expert of the centre nearest to its own scaled features. From the second round on a prediction
    passes the backbone twice: once for these features, once with the expert. While a round is learned all its
    pictures take the new expert, at the price of one pass.

    Each picture's factors are gathered and multiplied in one batched product: the cost is that of one expert, the
    order of the pictures stays, and no picture's answer depends on the others.

    In classification, classes that other rounds had and the chosen one had not get the logit -inf; a class that
    several rounds had belongs to each of their experts. A segmentation's logits stay as they are: one picture holds
    classes of many rounds.

    Departure where rounds bring the same classes (domains): the paper gives every expert a head of its own, which no
    later round changes. Here a class has one row in the head, whatever the expert, since a head sees features and not
    whose they are; each of the class's rounds goes on training that row, on its own expert's features, and a head of
    statistics sums over all of them. So the experts are never overwritten, but the rows of shared classes are.

    Reconstructed: sites, rank and alpha; plain views for the centres; fewer centres than asked for where a round has
    fewer different pictures; the identification with the first expert.
    """

    Config = ExpertsConfig
    summary = "an expert a round; the nearest of the rounds' k-means centres chooses, picture by picture"
    growth = "a pair of factors and the centres a round; from the second round on, two passes a picture"
    mergeable = False
    calibrates = True
    keeps_features = True
    history = "all"

    centres: Tensor
    owners: Tensor

    def __init__(self, config: ExpertsConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, choose_sites(sites, config.targets, config.blocks), info)
        self.scale = config.alpha / config.rank
        # The newest expert, which trains; older ones are stacked [t, r, in] and [t, out, r].
        self.down = nn.ParameterDict({site_key(site): torch.zeros(config.rank, site.inputs) for site in self.sites})
        self.up = nn.ParameterDict({site_key(site): torch.zeros(site.outputs, config.rank) for site in self.sites})
        self.past_down, self.past_up = nn.ParameterDict(), nn.ParameterDict()
        self.register_buffer("centres", torch.zeros(0, info.dim))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.int64))
        self.rounds: list[dict[str, Any]] = []
        self.learning = False

    def before_task(self, task: Task, statistics: Statistics) -> None:
        """Draw A and zero B of a new expert; the one before it is frozen."""
        self._stack()
        self.learning = True
        generator = task.generator("adapter")
        with torch.no_grad():
            for site in self.sites:
                bound = 1 / math.sqrt(site.inputs)
                drawn = torch.empty(self.config.rank, site.inputs).uniform_(-bound, bound, generator=generator)
                self.down[site_key(site)].copy_(drawn)
                self.up[site_key(site)].zero_()

    def after_task(self, task: Task, statistics: Statistics) -> None:
        """Remember the round's pictures by their centres."""
        self.learning = False
        seen = [self._features(pixels, statistics.network).cpu() for pixels in statistics.pixels()]
        self._remember(cluster(torch.cat(seen), self.config.clusters), task.annotated)

    def plan(self, images: Tensor, network: Any) -> Context:
        """Choose the expert of each picture: ``values["expert"]`` [B]."""
        count = len(self.rounds)
        if self.learning or count == 1:  # there is nothing to choose
            only = count if self.learning else 0
            return Context({"expert": torch.full((images.shape[0],), only, device=images.device)})
        if count == 0:
            return Context()
        away = (self._features(images, network)[:, None] - self.centres[None]).square().sum(2)
        return Context({"expert": self.owners[away.argmin(1)]})

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor:
        """scale * (x A_tᵀ) B_tᵀ with the t of each picture, for x [..., in]."""
        key = site_key(site)
        down, up = self.down[key], self.up[key]
        chosen = context.values.get("expert")
        if self.learning or chosen is None or key not in self.past_down:
            return lora_delta(x, down.to(x.dtype), up.to(x.dtype), self.scale)
        own_down = _gather(self.past_down[key], down, chosen).to(x.dtype)
        own_up = _gather(self.past_up[key], up, chosen).to(x.dtype)
        # Windows of a picture lie one after the other in the batch: together they are its tokens. Not `len`: it would
        # tie an exported graph to the batch that it was traced with.
        tokens = x.reshape(chosen.shape[0], -1, site.inputs)
        inner = torch.bmm(tokens, own_down.transpose(1, 2)) * self.scale
        return torch.bmm(inner, own_up.transpose(1, 2)).reshape(*x.shape[:-1], site.outputs)

    def calibrate(self, logits: Tensor, context: Context) -> Tensor:
        """-inf for the classes [B, K] that belong to other experts alone; maps of logits stay."""
        chosen = context.values.get("expert")
        if chosen is None or self.learning or logits.ndim != 2:
            return logits
        known = torch.zeros(len(self.rounds), logits.shape[1], dtype=torch.bool)
        for row, facts in zip(known, self.rounds, strict=True):
            row[facts["classes"]] = True
        ruled_out = (known.any(0) & ~known).to(logits.device)
        return logits.masked_fill(ruled_out[chosen], -math.inf)

    def dense(self, site: Site) -> Tensor:
        """Never: the weight would depend on the picture."""
        raise NotMergeable("each picture takes the expert of its own round, so there is no one weight to merge into")

    def expert(self, site: Site, index: int) -> Tensor:
        """(alpha / r) B_t A_t of one round."""
        key, older = site_key(site), len(self.rounds) - 1
        down = self.down[key] if index == older else self.past_down[key][index]
        up = self.up[key] if index == older else self.past_up[key][index]
        return compose(down.detach(), up.detach(), self.scale)

    def persistent_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """None: an expert is never trained again."""
        return ()

    def state(self) -> Snapshot:
        """The newest expert and its centres; its round and classes."""
        tensors = {
            f"{part}.{key}": factor.detach().clone()
            for part, factors in (("down", self.down), ("up", self.up))
            for key, factor in factors.items()
        }
        if not self.rounds:
            return tensors | {"centres": self.centres.new_zeros(self.config.clusters, self.info.dim)}, {}
        return tensors | {"centres": self.centres[self.owners == len(self.rounds) - 1]}, dict(self.rounds[-1])

    def load(self, history: Sequence[Snapshot]) -> None:
        """Restore the experts of all rounds."""
        for tensors, facts in history:
            self._stack()
            with torch.no_grad():
                for part, factors in (("down", self.down), ("up", self.up)):
                    for key, factor in factors.items():
                        factor.copy_(tensors[f"{part}.{key}"])
            self._remember(tensors["centres"], facts["classes"])

    def _stack(self) -> None:
        """Put the newest expert, if it has learned, with the older ones."""
        if not self.rounds:
            return
        for newest, past in ((self.down, self.past_down), (self.up, self.past_up)):
            for key, factor in newest.items():
                older = [past[key].data] if key in past else []
                # Frozen parameters: unlike buffers, a checkpoint of a round leaves them out.
                past[key] = nn.Parameter(torch.cat([*older, factor.data[None]]), requires_grad=False)

    def _remember(self, centres: Tensor, classes: Iterable[int]) -> None:
        owners = torch.full((len(centres),), len(self.rounds))
        self.centres = torch.cat([self.centres, centres.to(self.centres)])
        self.owners = torch.cat([self.owners, owners.to(self.owners)])
        self.rounds.append({"classes": list(classes)})

    @torch.no_grad()
    def _features(self, images: Tensor, network: Any) -> Tensor:
        """What identifies pictures [B, 3, H, W]: float32 [B, d] of length one."""
        if self.config.identify == "frozen":
            with network.bare():
                pooled = network.backbone(images).pooled
        else:
            kept, first = network.slot.context, torch.zeros(images.shape[0], dtype=torch.int64, device=images.device)
            network.slot.context = Context({"expert": first})
            try:
                pooled = network.backbone(images).pooled
            finally:
                network.slot.context = kept
        return F.normalize(pooled.float(), dim=1)


def _gather(past: Tensor, newest: Tensor, chosen: Tensor) -> Tensor:
    """Factors [B, ...] of the chosen experts, among older ones [t, ...] and the newest, which is number t."""
    older = past[chosen.clamp(max=len(past) - 1)]
    return torch.where((chosen == len(past))[:, None, None], newest, older)


def cluster(features: Tensor, count: int) -> Tensor:
    """k-means centres [k, d] of features [n, d], k at most ``count`` and the number of different rows.

    Computed in one thread: partial sums of several would be added in any order, and the centres would not be the same
    bit for bit twice.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    clusters = min(count, len(torch.unique(features, dim=0)))
    with threadpool_limits(limits=1):
        found = KMeans(clusters, n_init=10, random_state=0).fit(features.numpy())
    return torch.from_numpy(found.cluster_centers_).to(features)
