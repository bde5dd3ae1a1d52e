"""InfLoRA (Liang and Li, CVPR 2024, arXiv 2404.00228): each round learns where earlier inputs leave room."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.adapters.base import Adapter, Context, Statistics, Vectors, choose_sites, site_key
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.functional.low_rank import (
    Bases,
    GpmEnergy,
    compose,
    free_directions,
    gpm_directions,
    protect,
    widened,
)
from sapwood.settings import check
from sapwood.task import Snapshot, Task

# Products of narrower or odder inner widths take longer on processors: at ViT-S, rank 10 half as long again as this.
_FAST_WIDTH = 16


@dataclass(frozen=True)
class InfLoraConfig:
    """Shape of the factors, and how much of a round's inputs is protected.

    Attributes:
        rank: r, inner width of the factors.
        targets: projections that are adapted: q, k, v, o, fc1, fc2.
        blocks: ``all``, indices or ranges: ``0,1``, ``-4:``.
        energy: share of the energy of a round's inputs that is protected after it (the paper's lamb).
        final_energy: what the share rises to, linearly in the rounds (lame); counts only with ``expected_tasks``.
        expected_tasks: number of rounds to come in all; None keeps the share at ``energy``.
        gpm_energy: what a direction weighs: ``moment``, squared singular values of the inputs' second moment, as in the
            authors' code; ``feature``, those of the inputs.
    """

    rank: int = 10
    targets: tuple[str, ...] = ("k", "v")
    blocks: str = "all"
    energy: float = 0.95
    final_energy: float = 1.0
    expected_tasks: int | None = None
    gpm_energy: GpmEnergy = "moment"

    def __post_init__(self) -> None:
        tasks = self.expected_tasks
        check(
            (self.rank >= 1, f"adapter.rank must be >= 1, got {self.rank}"),
            (0 < self.energy <= 1, f"adapter.energy must be in (0, 1], got {self.energy}"),
            (
                self.energy <= self.final_energy <= 1,
                f"adapter.final_energy must be in [adapter.energy, 1], got {self.final_energy}",
            ),
            (tasks is None or tasks >= 1, f"adapter.expected_tasks must be >= 1 or none, got {tasks}"),
        )


class InfLora(Adapter):
    """W = W0 + sum over rounds B_t A_t; only B_t [out, r] trains, A_t [r, in] is designed before the round.

    The rows of A_t are the leading left singular vectors, divided by sqrt 3, of the second moment of the round's
    layer inputs (all tokens) without the part that earlier rounds protect; sites that see the same input share them.
    With B_t = 0 at the start the function does not jump. After the round the second moment, now through the trained
    weights, says which directions are protected from now on (DualGPM). A finished round lies in the weights: training
    and inference cost in the tenth round what they cost in the first.

    A stored round holds its factors and the directions it added to the protected ones, so that the bases, in memory at
    most d * d / 2 numbers a layer, are rebuilt on opening. All rounds together protect d directions at most.

    Where fewer than r directions are left (or the layer is narrower than r), the rows of A beyond them are zero.

    Reconstructed: the share stays constant where the number of rounds is not told, and when the first round protects
    more than half of all directions the complement is kept (the authors' code keeps the protected ones there and
    takes them for free).
    """

    Config = InfLoraConfig
    summary = "a fixed A a round, orthogonal to what earlier rounds' layers saw; only B trains"
    growth = "directions a layer, in memory d x d / 2 at most, on disk d x d in all; a pair a round on disk"
    history = "all"

    def __init__(self, config: InfLoraConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, choose_sites(sites, config.targets, config.blocks), info)
        self.widths = {site.input_key: site.inputs for site in self.sites}
        for key, width in self.widths.items():
            self.register_buffer(_down(key), torch.zeros(config.rank, width))
        self.up = nn.ParameterDict({site_key(site): torch.zeros(site.outputs, config.rank) for site in self.sites})
        # On the CPU throughout, so that a state that is opened again goes on with the same numbers, bit for bit.
        self.past: dict[str, Tensor] = {}
        self.bases: dict[str, Bases] = {}
        self.last: Snapshot | None = None
        self.learning = False

    def before_task(self, task: Task, statistics: Statistics) -> None:
        """Design A from what the layers see of the round's pictures; B is zero."""
        (moments,) = statistics.second_moments(Vectors("all"))
        with torch.no_grad():
            for key in self.widths:
                free = free_directions(self.bases.get(key), moments[key], self.config.rank)
                down = self.get_buffer(_down(key)).zero_()
                down[: free.shape[1]] = free.T.to(down) / math.sqrt(3)
        self._silence()
        self.learning = True

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor | None:
        """(x Aᵀ) Bᵀ of the live pair, for x [..., in].

        x Aᵀ is computed once a forward, and multiplied at a width that is fast; stored and trained are r columns.
        """
        # Between rounds B is zero; with gradients it is run all the same, by whoever measures what a round will take.
        if not (self.learning or torch.is_grad_enabled()):
            return None
        down, up = widened(self.get_buffer(_down(site.input_key)), self.up[site_key(site)], _FAST_WIDTH)
        values, name = context.values, f"inflora.{site.input_key}"
        if values.get(f"{name}.input") is not x:
            values |= {f"{name}.input": x, f"{name}.inner": F.linear(x, down.to(x.dtype))}
        return F.linear(values[f"{name}.inner"], up.to(x.dtype))

    def after_task(self, task: Task, statistics: Statistics) -> None:
        """Protect what the round's layers see through the trained weights, and put B A into the past."""
        (moments,) = statistics.second_moments(Vectors("all"))
        tensors = self._live()
        for key in self.widths:
            directions = gpm_directions(
                self.bases.get(key), moments[key], self.threshold(task.index), energy=self.config.gpm_energy
            )
            tensors[_directions(key)] = directions.float()
        self._fold(tensors)
        self.last = tensors, {}
        self._silence()
        self.learning = False

    def threshold(self, index: int) -> float:
        """Share of the energy that is protected after round ``index`` (0 is the first)."""
        config = self.config
        if config.expected_tasks is None:
            return config.energy
        return config.energy + (config.final_energy - config.energy) * min(index / config.expected_tasks, 1.0)

    def folded(self, site: Site) -> Tensor | None:
        """The sum of the finished rounds' B A; None without any."""
        return self.past.get(site.name)

    @torch.no_grad()
    def dense(self, site: Site) -> Tensor:
        """Past and live: B A."""
        live = compose(self.get_buffer(_down(site.input_key)), self.up[site_key(site)].detach(), 1.0)
        past = self.folded(site)
        return live if past is None else live + past.to(live)

    def persistent_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """None: a round's factors are in the weights when it is over."""
        return ()

    def state(self) -> Snapshot:
        """Factors of the last finished round and the directions that it protects."""
        if self.last is None:
            return self._live(), {}
        tensors, meta = self.last
        return dict(tensors), meta

    def load(self, history: Sequence[Snapshot]) -> None:
        """Fold the rounds one after the other."""
        for tensors, meta in history:
            self.last = dict(tensors), meta
            self._fold(tensors)
        self._silence()

    def _live(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items()}

    def _fold(self, tensors: Mapping[str, Tensor]) -> None:
        for site in self.sites:
            change = compose(tensors[_down(site.input_key)], tensors[f"up.{site_key(site)}"], 1.0)
            self.past[site.name] = self.past[site.name] + change if site.name in self.past else change
        for key in self.widths:
            self.bases[key] = protect(self.bases.get(key), tensors[_directions(key)])

    def _silence(self) -> None:
        with torch.no_grad():
            for factor in self.up.values():
                factor.zero_()


def _down(input_key: str) -> str:
    return f"down_{input_key.replace('.', '_')}"


def _directions(input_key: str) -> str:
    return f"directions_{input_key.replace('.', '_')}"
