"""All weights of the backbone train: the classic baseline, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sapwood.adapters.base import SITE_KINDS, Adapter, Context
from sapwood.backbones.base import BackboneInfo, Site


@dataclass(frozen=True)
class FullConfig:
    """Nothing to set; the rate is ``training.lr``."""


class FullFinetuning(Adapter):
    """Full fine-tuning. Every version stores the whole backbone: 88 MB a round for a ViT-S, 346 MB for a ViT-B."""

    Config = FullConfig
    summary = "all backbone weights train; each round stores the whole backbone"
    growth = "nothing in memory; a whole backbone on disk per version"
    trains_backbone = True
    site_kinds = SITE_KINDS

    def __init__(self, config: FullConfig, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__(config, (), info)

    def forward(self, site: Site, x: Tensor, context: Context) -> None:
        """Adds nothing: the weights themselves have changed."""

    def dense(self, site: Site) -> None:
        """No change beside the weights themselves."""
