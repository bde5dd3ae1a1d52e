"""How the weights of a frozen backbone change: one adapter per network, with one part per site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from sapwood.backbones.base import BackboneInfo, Site
from sapwood.backbones.split import chosen_blocks
from sapwood.errors import ConfigError
from sapwood.functional.factorise import Pair
from sapwood.task import Snapshot, Task


@dataclass
class Context:
    """What one forward knows about its pictures; lives as long as the forward.

    Attributes:
        values: per-picture tensors [B, ...] by name (a choice of expert, gates), set by ``Adapter.plan`` or on the way.
    """

    values: dict[str, Tensor] = field(default_factory=dict)


SITE_KINDS = frozenset({"linear", "conv"})
_ATTENTION = frozenset({"q", "k", "v", "o"})

TokenChoice = Literal["all", "class", "mean"]
"""Which tokens of a layer's input are looked at: all, the class token, or the mean of the patch tokens."""


@dataclass(frozen=True)
class Vectors:
    """What a second moment of layers' inputs is taken of.

    Attributes:
        tokens: of each picture.
        unit: each scaled to length one; zero stays.
    """

    tokens: TokenChoice = "all"
    unit: bool = False

    def of(self, rows: Tensor) -> Tensor:
        """These of the rows [n, d] of its tokens."""
        return rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny) if self.unit else rows


class Statistics(Protocol):
    """A round's training pictures in plain views, as the network sees them now; each question is one pass.

    Attributes:
        network: that they go through.
    """

    network: Any

    def pixels(self) -> Iterator[Tensor]:
        """Normalised pictures [B, 3, H, W], batch by batch, as ``Adapter.plan`` gets them."""

    def second_moments(self, *wanted: Vectors) -> tuple[dict[str, Tensor], ...]:
        """For each that is wanted the mean of x xᵀ over each layer's inputs x, [in, in] by ``input_key``; not centred.

        On the CPU, as precise as the vectors; all in one pass.
        """


class Adapter(nn.Module, ABC):
    """Base of all adapters. Only what a method needs is overridden; the rest does nothing.

    Class attributes state facts, which ``sapwood methods`` prints and tests rely on.

    Attributes:
        Config: its settings.
        summary: one line of what it is.
        growth: what grows with the number of rounds.
        mergeable: its change is one of the weights.
        calibrates: it changes logits, so that they cannot be computed from features alone.
        keeps_features: those of earlier rounds' pictures stay as they are.
        trains_backbone: the backbone's own weights train.
        site_kinds: which kinds of sites it serves, of ``SITE_KINDS``.
        history: the files of which rounds restore it.
    """

    Config: ClassVar[type]
    summary: ClassVar[str]
    growth: ClassVar[str]
    mergeable: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    keeps_features: ClassVar[bool] = False
    trains_backbone: ClassVar[bool] = False
    site_kinds: ClassVar[frozenset[str]] = frozenset({"linear"})
    history: ClassVar[Literal["last", "all"]] = "last"

    def __init__(self, config: Any, sites: Sequence[Site], info: BackboneInfo) -> None:
        super().__init__()
        beyond = sorted({site.part for site in sites if site.kind not in self.site_kinds})
        if beyond:
            raise ConfigError(
                f"{type(self).__name__} is made for linear layers, whose input is one vector a token, and "
                f"{', '.join(beyond)} of {info.name} are convolutions; take the adapter lora, full or none"
            )
        self.config = config
        self.sites = tuple(sites)
        self.info = info

    @property
    def moves(self) -> bool:
        """Whether a round of training changes the features."""
        return True

    def folded(self, site: Site) -> Tensor | None:
        """The finished past as a change of the weight, in its shape; the network adds it once, so it costs nothing."""
        return None

    @abstractmethod
    def forward(self, site: Site, x: Tensor, context: Context) -> Tensor | None:
        """What the live part adds to the site's output [..., out], for its input x [..., in]; None for nothing.

        Of a convolution input and output are maps [B, in, h, w] and [B, out, h', w'].
        """

    @abstractmethod
    def dense(self, site: Site) -> Tensor | None:
        """The whole change of the site's weight, in its shape, past and live; None where there is none.

        Raises:
            NotMergeable: the change depends on the input.
        """

    def expert(self, site: Site, index: int) -> Tensor | None:
        """What the pictures of one round alone get of the site's weight, in its shape; for adapters that choose.

        Args:
            site: one of ``sites``.
            index: of the round, from 0, among those in which the adapter learned.

        Raises:
            ConfigError: the adapter has one weight for all rounds.
        """
        raise ConfigError("the adapter has one weight for the pictures of all rounds")

    def factors(self, site: Site) -> Pair | None:
        """The same as a product B A of (A [r, in], B [out, r]); shapes as in ``functional.factorise``.

        None where only ``dense`` can tell; its factors are then found by singular values.
        """
        return None

    def before_task(self, task: Task, statistics: Statistics) -> None:
        """Prepare the live part for a round; never change ``folded`` here, whose weights the teacher shares."""

    def after_step(self) -> None:
        """Called after every optimiser step; projections belong here, not on gradients."""

    def after_task(self, task: Task, statistics: Statistics) -> None:
        """Fold or freeze what the round has learned; ask ``statistics`` before changing anything."""

    def penalty(self) -> Tensor | None:
        """A term added to the loss; None for none."""
        return None

    def plan(self, images: Tensor, network: Any) -> Context:
        """Look at normalised pictures before the forward (choice of expert); an empty context by default.

        Between ``before_task`` and ``after_task`` every picture belongs to the round that is being learned.
        """
        return Context()

    def calibrate(self, logits: Tensor, context: Context) -> Tensor:
        """Change logits [B, K] by what the forward left in the context; picture by picture."""
        return logits

    def persistent_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters that live across rounds, hence what EWC may anchor."""
        return self.named_parameters()

    def state(self) -> Snapshot:
        """Tensors and JSON that this round adds to the state folder."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}, {}

    def load(self, history: Sequence[Snapshot]) -> None:
        """Restore from the snapshots of all rounds, oldest first; by default the last holds everything."""
        if history:
            self.load_state_dict(history[-1][0])


def site_key(site: Site) -> str:
    """A site's name as a key of parameters, which may not hold dots.

    >>> site_key(Site("block.3.q", "linear", 8, 8, "block.3.qkv", "blocks.3.attn.q"))
    'block_3_q'
    """
    return site.name.replace(".", "_")


def summary_token(x: Tensor, tokens: TokenChoice, prefix: int) -> Tensor:
    """One vector a picture [B, d] of tokens [B, N, d] (or a map [B, h, w, d]), the first ``prefix`` are no patches.

    >>> import torch
    >>> x = torch.tensor([[[9.0], [1.0], [3.0]]])
    >>> summary_token(x, "class", prefix=1).item(), summary_token(x, "mean", prefix=1).item()
    (9.0, 2.0)
    """
    x = x.flatten(1, -2)
    return x[:, 0] if tokens == "class" else x[:, prefix:].mean(1)


def token_rows(x: Tensor, tokens: TokenChoice, prefix: int) -> Tensor:
    """Rows [n, d] of an input [B, N, d] (or a map [B, h, w, d]): one a picture in double precision on the CPU.

    All tokens are too many for products in it: they stay where they are, in float32.
    """
    if tokens == "all":
        return x.reshape(-1, x.shape[-1]).float()
    return summary_token(x, tokens, prefix).cpu().double()


def choose_sites(sites: Sequence[Site], targets: Sequence[str], blocks: str) -> tuple[Site, ...]:
    """The sites whose part is among ``targets``, in the blocks that ``blocks`` names.

    A convolutional network has no attention: there q, k, v and o, the defaults of all adapters, stand for its
    convolutions wider than 1x1 (``conv2`` of a ResNet's bottleneck).

    ``blocks`` is as for ``chosen_blocks``.
    """
    parts = sorted({site.part for site in sites})
    if targets and _ATTENTION.issuperset(targets) and _ATTENTION.isdisjoint(parts):
        targets = sorted({site.part for site in sites if site.kernel and max(site.kernel.size) > 1}) or targets
    unknown = [target for target in targets if target not in parts]
    if unknown or not targets:
        raise ConfigError(
            f"adapter.targets: no projection {', '.join(unknown) or '(none given)'}; it has {', '.join(parts)}"
        )
    depth = 1 + max(site.block for site in sites)
    wanted = chosen_blocks(blocks, depth, "adapter.blocks")
    return tuple(site for site in sites if site.part in targets and site.block in wanted)
