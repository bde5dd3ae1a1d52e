"""No change at all: the backbone stays as it came, and only the head learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sapwood.adapters.base import SITE_KINDS, Adapter, Context
from sapwood.backbones.base import BackboneInfo, Site


@dataclass(frozen=True)
class NoneConfig:
    """Nothing to set."""


class NoAdapter(Adapter):
    """Frozen features."""

    Config = NoneConfig
    summary = "the backbone stays frozen"
    growth = "nothing"
    site_kinds = SITE_KINDS

    def __init__(self, config: NoneConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, (), info)

    @property
    def moves(self) -> bool:
        """Never."""
        return False

    def forward(self, site: Site, x: Tensor, context: Context) -> None:
        """Adds nothing."""

    def dense(self, site: Site) -> None:
        """No change."""
