"""Synthetic rounds: how an adapter grows with their number, without pictures and without training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.adapters import Adapter
from sapwood.assembly import assemble, new_record, training_config
from sapwood.backbones import create_backbone
from sapwood.collector import Collector
from sapwood.data.loader import Batch
from sapwood.errors import NotMergeable
from sapwood.methods import find_method
from sapwood.network import Network
from sapwood.settings import TrainingConfig
from sapwood.task import Task
from sapwood.world import WHOLE, Part

DIRECTIONS = 7  # that a round takes, so that fifty do not fill a width of 384
TOKENS = 3
SPREAD = 0.02  # of what the drawn factors differ from those that a round begins with


class SyntheticRound(Collector):
    """What is to be known of a round's pictures, drawn instead of seen: they are random, the layers' inputs made up."""

    def __init__(self, network: Network, index: int, size: int) -> None:
        super().__init__(network, self, DIRECTIONS)  # type: ignore[arg-type]
        self.index, self.size = index, size

    def batches(self, epoch: int, start: int, size: int | None = None, part: Part = WHOLE) -> Iterator[Batch]:
        """One batch, a picture for every direction."""
        indices = torch.arange(self.count)
        yield Batch(pictures(self.count, self.size, seed=self.index), torch.full_like(indices, self.index), indices)

    @torch.no_grad()
    def visit(self, look: Callable[[str, Tensor], None], *, shared: bool = False) -> None:
        """Each picture is one direction at every layer; all have the same energy."""
        for layer in self.network.adapted:
            width = layer.sites[0].inputs
            own = (self.index * DIRECTIONS + torch.arange(self.count)) % width
            look(layer.sites[0].input_key, F.one_hot(own, width).float()[:, None].expand(-1, TOKENS, -1))


@dataclass
class Grown:
    """A method's networks by T: in the midst of round T, after it, and then merged; and the bytes after each round."""

    learning: dict[int, Network] = field(default_factory=dict)
    finished: dict[int, Network] = field(default_factory=dict)
    merged: dict[int, Network] = field(default_factory=dict)
    resident: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    beside: list[int] = field(default_factory=list)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def stored_in_all(self, rounds: int) -> int:
        """Bytes that opening a state of so many rounds reads."""
        every = next(iter(self.finished.values())).adapter.history == "all"
        return sum(self.stored[:rounds]) if every else self.stored[rounds - 1]


def pictures(count: int, size: int, *, seed: int) -> Tensor:
    """Random pictures uint8 [count, size, size, 3]: noise, each on a colour of its own."""
    rng = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 193, (count, 1, 1, 3), generator=rng)
    return (colours + torch.randint(0, 64, (count, size, size, 3), generator=rng)).to(torch.uint8)


def twin(network: Network) -> Network:
    """A copy with adapter, head and folded weights of its own, on the same frozen backbone."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.backbone.parameters()})


def share(network: Network, other: Network) -> None:
    """Put a network on the frozen weights of another, so that a cache holds them for neither or for both."""
    weights = {name.replace(".base.", "."): each for name, each in other.backbone.named_parameters()}
    for name, parameter in network.backbone.named_parameters():
        parameter.data = weights[name.replace(".base.", ".")].data


def grow(method: str, counts: Iterable[int], *, backbone: str, size: int, classes: int) -> Grown:
    """Lead a method through synthetic rounds, up to the largest of ``counts``, and keep networks at each of them."""
    record = new_record(create_backbone(backbone, size), find_method(method), size, 0, {})
    network, _ = assemble(record, None, torch.device("cpu"), "fp32")
    network.head.grow(classes, torch.Generator().manual_seed(0))
    network.head.classifier.draw_idle(torch.Generator().manual_seed(0))
    found, wanted = Grown(training=training_config(record)), set(counts)
    for index in range(max(wanted)):
        task, seen = Task(index, str(index), (index,), (index,), index + 1, 0), SyntheticRound(network, index, size)
        network.adapter.before_task(task, seen)
        if index + 1 in wanted:
            network.refold()
            found.learning[index + 1] = twin(network)
        draw(network.adapter, index)
        network.adapter.after_task(task, seen)
        network.refold()
        found.resident.append(storage_bytes(reachable(network.adapter)))
        found.beside.append(storage_bytes(layer.changed for layer in network.adapted))
        found.stored.append(len(save({name: each.contiguous() for name, each in network.adapter.state()[0].items()})))
        if index + 1 in wanted:
            found.finished[index + 1] = twin(network)
            merged = twin(network)
            try:
                merged.merge()
            except NotMergeable:
                continue
            found.merged[index + 1] = merged
    return found


@torch.no_grad()
def draw(adapter: Adapter, index: int) -> None:
    """What training would do to the live part."""
    rng = torch.Generator().manual_seed(index)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.add_(SPREAD * torch.randn(parameter.shape, generator=rng))
    adapter.after_step()


def reachable(thing: Any) -> Iterator[Tensor]:
    """All tensors that an adapter holds, in whatever it keeps them."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for each in thing.values():
            yield from reachable(each)
    elif isinstance(thing, list | tuple):
        for each in thing:
            yield from reachable(each)
    elif isinstance(thing, nn.Module):
        yield from reachable(vars(thing))


def storage_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of distinct storages."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
