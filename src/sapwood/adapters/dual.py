"""DualLoRA (arXiv 2411.00623): an orthogonal and a residual low-rank pair a round, gates, and a guess of the task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sapwood.adapters.base import Adapter, Context, Statistics, Vectors, choose_sites, site_key
from sapwood.adapters.dual_config import DualConfig
from sapwood.adapters.dual_memory import LayerMemory
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.errors import ConfigError, NotMergeable
from sapwood.functional.gates import mean_share, new_directions, task_offsets
from sapwood.functional.low_rank import Bases, compose, free_directions, lora_delta, project_out
from sapwood.task import Snapshot, Task


class Dual(Adapter):
    """y = x (W0 + Wo)ᵀ + sum over rounds t of gate_t(z) (x P_t) Rᵀ, with P_t the projector on a round's directions.

    The abstracts say: two low-rank adapters beside the frozen weight, one kept orthogonal to the subspaces of earlier
    tasks, one on task-specific residual bases; a memory that weighs the latter by the picture; a predicted task, with
    a confidence, that calibrates the outputs. Second-hand: bases from the class token alone. The equations are ours.

    Reconstructed, each by an option or as said here:

    - Directions of a round: those of most energy in the not centred second moment of its class tokens at the layer,
      beyond the earlier rounds', at least one (``energy``, ``expected_tasks``, ``token``, ``moments``).
    - The orthogonal pair is fresh every round. Its A begins with the leading left singular vectors of the moment
      without the earlier directions, over sqrt 3 (InfLoRA's design); rows beyond the directions there are stay zero.
      Both factors train (``freeze_down``), A is projected after every optimiser step, and the product is folded into
      the weight. Tokens other than the class token may meet the directions protected, and be changed.
    - The residual pair, from the second round on: A drawn Kaiming-uniform(sqrt 5) and kept in the directions of
      ``residual_basis`` after every step. Directions of two rounds are orthogonal, so the parts never mix. It is
      nothing in layers where the round's pictures have no direction of their own, as in a first block, whose class
      token is the same for all pictures: no gate could open there afterwards.
    - The gate of a round is min(1, energy of z in its directions / what its own pictures have on average), per layer
      and picture, without a gradient; that of the round being learned is 1, in the pass that finds directions too.
      Layers see what earlier layers' gates let through: one forward.
    - The task: softmax of ``sharpness`` times the same ratio, not cut at 1, averaged over the layers where the task
      has directions. If the largest p reaches ``confidence``, the logits of each task's classes get ``calibration`` *
      log p (a class of several tasks the best); the background of masks stays.

    Where the input is cut into windows (SAM), each window has its own gate and the guess averages a picture's windows.
    """

    Config = DualConfig
    summary = "an orthogonal pair in the weights and a residual pair behind gates, every round"
    growth = "two low-rank pairs a site and some directions a layer; inference by the directions, at most the width"
    mergeable = False
    calibrates = True
    history = "all"
    config: DualConfig
    members: Tensor

    def __init__(self, config: DualConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, choose_sites(sites, config.targets, config.blocks), info)
        if config.token == "class" and info.prefix_tokens == 0:
            raise ConfigError(
                f"adapter.token=class: {info.name} has no class token; use the mean of the patches, "
                "--set adapter.token=mean"
            )
        self.gated = config.residual and config.gates
        # What no picture can change is one weight.
        self.mergeable = not self.gated and config.calibration == 0  # type: ignore[misc]
        self.calibrates = config.calibration > 0  # type: ignore[misc]
        self.learning = False
        self.past: list[Snapshot] = []
        self.register_buffer("members", torch.zeros(0, 0, dtype=torch.bool))
        by_layer: dict[str, list[Site]] = {}
        for site in self.sites:
            by_layer.setdefault(_layer_key(site), []).append(site)
        self.layers = nn.ModuleDict(
            {
                key: LayerMemory(group[0].input_key, group[0].inputs, {site_key(site): site.outputs for site in group})
                for key, group in by_layer.items()
            }
        )
        self.down, self.up = self._pairs(self.sites)
        self.residual_down, self.residual_up = self._pairs(self.sites if config.residual else ())
        if config.freeze_down:
            self.down.requires_grad_(False)

    def _pairs(self, sites: Sequence[Site]) -> tuple[nn.ParameterDict, nn.ParameterDict]:
        rank = self.config.rank
        return (
            nn.ParameterDict({site_key(site): torch.zeros(rank, site.inputs) for site in sites}),
            nn.ParameterDict({site_key(site): torch.zeros(site.outputs, rank) for site in sites}),
        )

    def _memory(self, site: Site) -> LayerMemory:
        memory = self.layers[_layer_key(site)]
        assert isinstance(memory, LayerMemory)
        return memory

    def _memories(self) -> Iterator[tuple[str, LayerMemory]]:
        for key, memory in self.layers.items():
            assert isinstance(memory, LayerMemory)
            yield key, memory

    @torch.no_grad()
    def before_task(self, task: Task, statistics: Statistics) -> None:
        """Begin both pairs, such that they add nothing yet."""
        config = self.config
        (measured,) = statistics.second_moments(config.directed)
        generator = task.generator("adapter")
        for _, memory in self._memories():
            moment, held = measured[memory.input_key], memory.basis.cpu()
            design = free_directions(Bases(held), moment, config.rank).T / math.sqrt(3)
            if self._has_residual:
                live = new_directions(moment, held, self._energy(task))
                if config.residual_basis == "previous" and live.shape[1]:
                    live = memory.directions(-1).clone()  # a view would keep all directions alive
                memory.live = live.to(memory.basis)
            for key in memory.sites:
                self.down[key].zero_()[: len(design)] = design
                self.up[key].zero_()
                if self._has_residual:
                    bound = 1 / math.sqrt(design.shape[1])
                    # Drawn on the CPU, so that the same seed gives the same factors on every device.
                    drawn = torch.empty(config.rank, design.shape[1]).uniform_(-bound, bound, generator=generator)
                    self.residual_down[key].copy_(_project_into(drawn.to(memory.live), memory.live))
                    self.residual_up[key].zero_()
        for factors in (self.residual_down, self.residual_up):
            factors.requires_grad_(self._has_residual)
        self.learning = True

    @property
    def _has_residual(self) -> bool:
        """Whether a round learned now has a residual pair: before the first there is nothing that one could be of."""
        return self.config.residual and bool(self.past)

    @torch.no_grad()
    def after_step(self) -> None:
        """Put A back where it must be: with Adam or momentum a projected gradient would not keep it there."""
        if not self.learning:
            return
        for _, memory in self._memories():
            for key in memory.sites:
                if memory.rounds and not self.config.freeze_down:
                    self.down[key].copy_(project_out(self.down[key], memory.basis))
                if self._has_residual:
                    self.residual_down[key].copy_(_project_into(self.residual_down[key], memory.live))

    @torch.no_grad()
    def after_task(self, task: Task, statistics: Statistics) -> None:
        """Find the round's directions in the features as they are now, then fold one pair and remember the other."""
        measured, shares = statistics.second_moments(self.config.directed, Vectors(self.config.token, unit=True))
        tensors: dict[str, Tensor] = {}
        for layer, memory in self._memories():
            moment = measured[memory.input_key]
            protected = memory.basis.cpu().double()
            own = memory.live.cpu().double()[:, : None if self.config.residual_basis == "current" else 0]
            held = torch.cat([protected, own], 1)
            found = new_directions(moment, held, self._energy(task), least=0 if own.shape[1] else 1)
            basis = torch.cat([own, found], 1)
            tensors[f"basis.{layer}"] = basis.float()
            tensors[f"mean.{layer}"] = mean_share(shares[memory.input_key], basis).float()
            for key in memory.sites:
                # Twice and in double precision: what is folded is never projected again.
                down = project_out(project_out(self.down[key].cpu().double(), protected), protected)
                tensors[f"down.{key}"], tensors[f"up.{key}"] = down.float(), self.up[key].cpu().clone()
                if self._has_residual:
                    tensors[f"residual_down.{key}"] = self.residual_down[key].cpu().clone()
                    tensors[f"residual_up.{key}"] = self.residual_up[key].cpu().clone()
        self._append((tensors, {"classes": list(task.annotated)}))
        self.learning = False

    def _energy(self, task: Task) -> float:
        """Share of the energy to hold after this round, which rises where the number of rounds is known."""
        energy, tasks = self.config.energy, self.config.expected_tasks
        return energy if tasks is None else energy + (1 - energy) * min(task.index, tasks - 1) / tasks

    def _append(self, snapshot: Snapshot) -> None:
        tensors, meta = snapshot
        remembers = self.gated and bool(self.past)
        self.past.append(snapshot)
        for layer, memory in self._memories():
            memory.append(tensors[f"basis.{layer}"], tensors[f"mean.{layer}"])
            if remembers:
                of = -2 if self.config.residual_basis == "previous" else -1
                pairs = {key: (tensors[f"residual_down.{key}"], tensors[f"residual_up.{key}"]) for key in memory.sites}
                memory.remember(of, pairs)
        count = max(self.members.shape[1], 1 + max(meta["classes"], default=-1))
        members = self.members.new_zeros(len(self.past), count)
        members[:-1, : self.members.shape[1]] = self.members
        members[-1, meta["classes"]] = True
        self.members = members

    def folded(self, site: Site) -> Tensor | None:
        """The sum of the past orthogonal pairs; of the residual ones too where no gate weighs them."""
        key = site_key(site)
        like = self.up[key]
        changes: list[Tensor] = []
        for tensors, _ in self.past:
            for part in ("", "residual_") if not self.gated else ("",):
                if f"{part}down.{key}" in tensors:
                    down, up = tensors[f"{part}down.{key}"], tensors[f"{part}up.{key}"]
                    changes.append(compose(down.to(like), up.to(like), 1.0))
        return torch.stack(changes).sum(0) if changes else None

    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor | None:
        """The pairs being learned, and the finished residual parts, each times its gate, for x [B, ..., in]."""
        key, memory = site_key(site), self._memory(site)
        change: Tensor | None = None
        if self.learning:
            down, up = self._live(key)
            change = lora_delta(x, down.to(x.dtype), up.to(x.dtype), 1.0)
        if memory.rounds and (memory.recalls or (self.calibrates and not self.learning)):
            values, name = context.values, f"dual.{memory.input_key}"
            if name not in values:  # sites that share an input share all that is made of it
                values[name] = memory.ratios(x, self.config.token, self.info.prefix_tokens)
            if memory.recalls:
                if f"{name}.inner" not in values:
                    values[f"{name}.inner"] = memory.inner(x, values[name])
                recalled = memory.recall(key, values[f"{name}.inner"])
                change = recalled if change is None else change + recalled
        return change

    def _live(self, key: str) -> tuple[Tensor, Tensor]:
        """A and B of what is being learned: one pair, or two as one."""
        if not self._has_residual:
            return self.down[key], self.up[key]
        return torch.cat([self.down[key], self.residual_down[key]]), torch.cat([self.up[key], self.residual_up[key]], 1)

    def dense(self, site: Site) -> Tensor | None:
        """Past and live, where neither gates nor the guess of a task look at the picture."""
        if not self.mergeable:
            raise NotMergeable(
                "DualLoRA looks at each picture: gates scale what it adds, the guess of a task changes the logits; "
                "adapter.gates=false with adapter.calibration=0 merges"
            )
        past = self.folded(site)
        if not self.learning:
            return past
        down, up = self._live(site_key(site))
        live = compose(down.detach(), up.detach(), 1.0)
        return live if past is None else live + past

    def expert(self, site: Site, index: int) -> Tensor | None:
        """The orthogonal pairs of all rounds, and the residual pair of one with its gate open."""
        past, key = self.folded(site), site_key(site)
        tensors = self.past[index][0]
        if not self.gated or f"residual_down.{key}" not in tensors:
            return past
        down, up = (tensors[f"residual_{part}.{key}"].to(self.up[key]) for part in ("down", "up"))
        own = compose(down, up, 1.0)
        return own if past is None else past + own

    def calibrate(self, logits: Tensor, context: Context) -> Tensor:
        """Add to logits [B, K] or [B, K, h, w] what the guess of the task says; nothing while a round is learned."""
        ratios = [context.values.get(f"dual.{memory.input_key}") for _, memory in self._memories()]
        if self.learning or not self.calibrates or any(each is None for each in ratios) or not self.past:
            return logits
        # Windows of one picture follow each other.
        sums = torch.stack(
            [each.unflatten(0, (logits.shape[0], -1)).mean(1) for each in ratios if each is not None]
        ).sum(0)
        layers = torch.stack([memory.tells for _, memory in self._memories()]).sum(0)
        offsets = task_offsets(
            sums / layers.clamp(min=1),
            self.members,
            sharpness=self.config.sharpness,
            weight=self.config.calibration,
            confidence=self.config.confidence,
        )
        changed = logits.clone()
        changed[:, : offsets.shape[1]] += offsets.reshape(*offsets.shape, *[1] * (logits.ndim - 2)).to(logits.dtype)
        return changed

    def persistent_parameters(self) -> tuple[()]:
        """None: every round has its own."""
        return ()

    def state(self) -> Snapshot:
        """Factors, directions and mean shares of the last round, and the classes it had pictures of."""
        if not self.past:
            pairs = (("down", self.down), ("up", self.up))  # all that a first round adds but its directions
            return {
                f"{part}.{key}": one.detach().clone() for part, factors in pairs for key, one in factors.items()
            }, {}
        tensors, meta = self.past[-1]
        return dict(tensors), dict(meta)

    def load(self, history: Sequence[Snapshot]) -> None:
        """Restore the past of every round."""
        for tensors, meta in history:
            self._append((dict(tensors), dict(meta)))


def _layer_key(site: Site) -> str:
    return "layer_" + site.input_key.replace(".", "_")


def _project_into(rows: Tensor, basis: Tensor) -> Tensor:
    """The part of rows [r, d] in the span of a basis [d, k]."""
    return (rows @ basis) @ basis.T
