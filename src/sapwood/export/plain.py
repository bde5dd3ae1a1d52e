"""What leaves: a network in which nothing is left of how it was learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.adapters.base import Adapter
from sapwood.assembly import assemble
from sapwood.backbones.base import Backbone, Site, Tokens, height_width
from sapwood.depths import reading
from sapwood.errors import ConfigError, NotMergeable
from sapwood.heads.base import Head
from sapwood.network import Network
from sapwood.state import State


class Plain(nn.Module):
    """Pictures in, logits out: a backbone with the learned change in its weights, and a head.

    Where the change depends on the picture there is no one weight, and the network keeps its adapter (``merged`` is
    false), unless one round is asked for.

    Args:
        network: as it was opened, in float32 on the CPU.
        record: of the version it comes from.
        version: its id.
        task: of an adapter that chooses between rounds, the round (from 1) whose change is taken for every picture;
            only that round's classes are told apart.
        root: the state's folder, which may hold the backbone too.

    Attributes:
        network: in evaluation mode.
        merged: no adapter is left: the backbone's modules are those of its library.
        channels: of the head's channels those that ``forward`` gives, in order; None for all.

    Raises:
        ConfigError: there is no such round, or the adapter does not choose.
    """

    def __init__(
        self,
        network: Network,
        record: Mapping[str, Any],
        version: str,
        task: int | None = None,
        root: Path | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.record = record
        self.version = version
        self.root = root
        self.task = task
        self.channels: tuple[int, ...] | None = None
        self._round: int | None = None
        if task is not None:
            if type(network.adapter).expert is Adapter.expert:
                raise ConfigError(
                    f"--task {task}: the adapter {record['parts']['adapter']} has one weight for the pictures of all "
                    "rounds; leave the option out"
                )
            self._round = _adapted_round(record, task)
            self.channels = _channels_of(record, task)
        self.merged = task is not None or network.adapter.mergeable
        if self.merged:
            dense = {site.name: self.change(site) for site in network.adapter.sites}
            for layer in network.adapted:
                layer.change(dense)
                layer.live = False
            strip(network)

    @classmethod
    def open(cls, state: State, task: int | None = None) -> Plain:
        """The current version of a state.

        Raises:
            ConfigError: it has learned nothing yet, or has no such round.
        """
        if not state.version.record["classes"]:
            raise ConfigError(f"{state.path} has learned nothing yet; run: sapwood learn {state.path} FOLDER")
        network = state.reading(lambda: assemble(state.version.record, state, torch.device("cpu"), "fp32")[0])
        return cls(network, state.version.record, state.version.id, task, state.path)

    @property
    def backbone(self) -> Backbone:
        """The encoder; ``backbone.model`` is the library's own model."""
        return self.network.backbone

    @property
    def head(self) -> Head:
        """The head; its ``temperature`` divides the logits."""
        return self.network.head

    @property
    def kind(self) -> str:
        """``classification`` or ``segmentation``."""
        return str(self.record["kind"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the logits' channels; of masks the background comes first."""
        names = tuple(entry["name"] for entry in self.record["classes"])
        return names if self.channels is None else tuple(names[channel] for channel in self.channels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the plain view in pixels."""
        return height_width(self.record["image_size"])

    def change(self, site: Site) -> Tensor | None:
        """What was learned of a site's weight, in its shape (of one round, where one was asked for); None for nothing.

        Raises:
            NotMergeable: it depends on the picture.
            ConfigError: one round was asked for and the adapter does not choose between rounds.
        """
        adapter = self.network.adapter
        return adapter.dense(site) if self._round is None else adapter.expert(site, self._round)

    def refuse_unmerged(self) -> None:
        """For formats that hold weights alone.

        Raises:
            NotMergeable: the change depends on the picture; says why and what is offered.
        """
        if self.merged:
            return
        try:
            for site in self.network.adapter.sites:
                self.network.adapter.dense(site)
        except NotMergeable as error:
            part = f"one round's part with --task N (1..{len(self.record['tasks'])}), or "
            offered = "" if type(self.network.adapter).expert is Adapter.expert else part
            raise NotMergeable(
                f"method {self.record['method']!r} cannot be held by weights alone: {error}. Export {offered}"
                "everything with --to onnx"
            ) from error

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits of normalised pictures [B, 3, H, W] float32, whose softmax is ``score``.

        [B, K], or of masks a map [B, C, h, w] on the head's grid.
        """
        network = self.network
        if self.merged:
            logits = network.head(self._tokens(pixel_values))
        else:
            context = network.slot.adapter.plan(pixel_values, network)
            network.slot.context = context
            logits = network.adapter.calibrate(network.head(self._tokens(pixel_values)), context)
        if self.channels is not None:
            beyond = range(network.head.classes, logits.shape[1])  # of masks: what is none of the classes
            logits = logits[:, [*self.channels, *beyond]]
        return logits / network.head.temperature

    def _tokens(self, pixel_values: Tensor) -> Tokens:
        with reading(self.backbone, self.network.reads) as pooled:
            return pooled(self.backbone(pixel_values))


def strip(network: Network) -> None:
    """Put the library's own layers, with the merged weights, back in the place of the adapted ones."""
    for layer in network.adapted:
        layer.base.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    for site in network.adapter.sites:
        parent, _, name = site.module.rpartition(".")
        owner = network.backbone.get_submodule(parent)
        module = getattr(owner, name)
        setattr(owner, name, getattr(module, "base", module))
    network.adapted = []


def _adapted_round(record: Mapping[str, Any], task: int) -> int:
    """Number of a round (from 1) among those in which the adapter learned, from 0."""
    tasks = record["tasks"]
    if not 1 <= task <= len(tasks):
        raise ConfigError(f"--task {task}: the state has rounds 1..{len(tasks)}")
    if tasks[task - 1]["parts"]["adapter"] is None:
        raise ConfigError(f"--task {task}: round {tasks[task - 1]['name']!r} taught the head alone; it has no expert")
    return sum(entry["parts"]["adapter"] is not None for entry in tasks[: task - 1])


def _channels_of(record: Mapping[str, Any], task: int) -> tuple[int, ...]:
    names = set(record["tasks"][task - 1]["annotated"])
    masks = record["kind"] == "segmentation"  # the background belongs to every round
    return tuple(
        channel for channel, entry in enumerate(record["classes"]) if entry["name"] in names or (masks and not channel)
    )
