"""A layer of a frozen backbone that an adapter changes: what the network puts in the place of the layer itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.adapters.base import Adapter, Context
from sapwood.backbones.base import Site


@dataclass
class Slot:
    """Which adapter the wrapped projections consult just now, and what it knows about the pictures."""

    adapter: Adapter
    context: Context = field(default_factory=Context)


class Adapted(nn.Module):
    """A frozen layer plus what the adapter in the slot adds to its sites.

    The base layer's own tensors are never written to; past rounds and merges live in a second weight.
    """

    base: nn.Linear | nn.Conv2d

    def __init__(self, base: nn.Linear | nn.Conv2d, sites: list[Site], slot: Slot) -> None:
        super().__init__()
        self.base = base
        self.sites = sites
        self.slot = slot
        self.live = True
        self.changed: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The weight in use: the base layer's, or that of ``change``."""
        return self.base.weight if self.changed is None else self.changed

    def change(self, changes: dict[str, Tensor | None]) -> None:
        """Use the base weight plus the given change of each site; None everywhere goes back to the base."""
        self.changed = None
        for site in self.sites:
            change = changes[site.name]
            if change is None:
                continue
            if self.changed is None:
                self.changed = self.base.weight.detach().clone()
            start, stop = site.rows or (0, site.outputs)
            self.changed[start:stop] += change.to(self.changed)


class AdaptedLinear(Adapted):
    """A linear layer, whose sites may each be some of its rows (a fused projection)."""

    base: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Output [..., out] for input [..., in]."""
        out = F.linear(x, self.weight, self.base.bias)
        if not self.live:
            return out
        for site in self.sites:
            delta = self.slot.adapter(site, x, self.slot.context)
            if delta is None:
                continue
            # In place: the linear layer's backward does not look at its output.
            if site.rows is None:
                out += delta
            else:
                out[..., site.rows[0] : site.rows[1]] += delta
        return out


class AdaptedConv(Adapted):
    """A convolution, which is one site."""

    base: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, out, h', w'] for input [B, in, h, w]."""
        base = self.base
        out = F.conv2d(x, self.weight, base.bias, base.stride, base.padding, base.dilation, base.groups)
        if not self.live:
            return out
        for site in self.sites:
            delta = self.slot.adapter(site, x, self.slot.context)
            if delta is not None:
                out += delta  # in place: a convolution's backward does not look at its output
        return out


def adapted(base: nn.Module, sites: list[Site], slot: Slot) -> AdaptedLinear | AdaptedConv:
    """The layer of these sites with the adapter in the slot."""
    if isinstance(base, nn.Linear):
        return AdaptedLinear(base, sites, slot)
    if isinstance(base, nn.Conv2d):
        return AdaptedConv(base, sites, slot)
    raise TypeError(f"{sites[0].module} is a {type(base).__name__}; adapters change nn.Linear and nn.Conv2d")
