"""Backbone, adapter and head as one network: attaching, folding, merging, and the teacher on the same backbone."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.adapted import Adapted, Slot, adapted
from sapwood.adapters.base import Adapter, Context
from sapwood.backbones.base import Backbone, Site, Size, Tokens, height_width, tensor_digest
from sapwood.backbones.split import Split
from sapwood.data.transforms import normalise
from sapwood.depths import blocks_read, check_read, reading
from sapwood.heads.base import Head
from sapwood.objectives.base import NEEDS, Outputs
from sapwood.observing import observing, outputs_of


class Network(nn.Module):
    """One forward from pictures to logits.

    ``forward`` gives training logits, ``predict`` gives prediction logits.
    Pictures are uint8 [B, H, W, 3]; normalisation happens here, once.

    Attributes:
        memory: features of pictures by ``fingerprint``, for runs that meet the same pictures again and again; None (the
            default) keeps none.
        reads: blocks whose class tokens the head reads, see ``depths``; none where it reads the backbone's own feature.
        watched: what ``forward`` and the teachers give beside the logits, see ``watching``; nothing at first.
    """

    def __init__(self, backbone: Backbone, adapter: Adapter, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter = adapter
        self.head = head
        check_read(head.config, backbone)
        self.reads = blocks_read(head.config, backbone.info)
        self.slot = Slot(adapter)
        self.precision = "fp32"
        self.memory: dict[str, Tensor] | None = None
        self.watched: frozenset[str] = frozenset()
        self.autocast: torch.dtype | None = None
        self.adapted: list[Adapted] = []
        self._attach()
        if adapter.trains_backbone:
            backbone.requires_grad_(True)

    def _attach(self) -> None:
        modules: dict[str, list[Site]] = {}
        for site in self.adapter.sites:
            modules.setdefault(site.module, []).append(site)
        for path, sites in modules.items():
            parent, _, name = path.rpartition(".")
            owner = self.backbone.get_submodule(parent)
            wrapped = adapted(getattr(owner, name), sites, self.slot)
            setattr(owner, name, wrapped)
            self.adapted.append(wrapped)

    def refold(self) -> None:
        """Bring the weights up to date with what the adapter has folded; call after a round and after loading."""
        for layer in self.adapted:
            layer.live = True
            layer.change({site.name: self.adapter.folded(site) for site in layer.sites})

    def merge(self) -> None:
        """Put the adapter's whole change into the weights: inference then costs what the bare backbone costs.

        Raises:
            NotMergeable: the change depends on the input; nothing is changed.
        """
        dense = {site.name: self.adapter.dense(site) for site in self.adapter.sites}
        for layer in self.adapted:
            layer.change(dense)
            layer.live = False

    def unmerge(self) -> None:
        """Undo ``merge``; the base weights were never touched, so the outputs are bit for bit those of before."""
        self.refold()

    def set_precision(self, precision: str) -> None:
        """Compute in ``fp32`` or ``bf16``.

        A frozen backbone is held in bf16, once; one that trains keeps float32 weights and runs under autocast.

        Raises:
            ValueError: a frozen backbone has been rounded to bf16 and is asked back to fp32.
        """
        low = precision == "bf16"
        if self.precision == "bf16" and not low and not self.adapter.trains_backbone:
            raise ValueError("the weights were rounded to bf16; load the network anew for fp32")
        self.precision = precision
        if self.adapter.trains_backbone:
            self.autocast = torch.bfloat16 if low else None
        else:
            self.backbone.to(torch.bfloat16 if low else torch.float32)
        self.refold()

    def lent(self, info: Mapping[str, Any], size: Size, device: torch.device, precision: str) -> Backbone | None:
        """This network's backbone as it came, for another network: modules of its own on the very same tensors.

        None where the frozen weights of ``info`` at this size, device and precision are others than this network's.
        """
        mine = self.backbone.info
        asked = (info["name"], info["sha256"], height_width(size), _place(device), precision)
        if asked != (mine.name, mine.sha256, height_width(mine.image_size), _place(self.device), self.precision):
            return None
        if self.adapter.trains_backbone:
            return None
        memo: dict[int, Any] = {id(each): each for each in (*self.backbone.parameters(), *self.backbone.buffers())}
        lent = copy.deepcopy(self.backbone, memo | {id(layer): layer.base for layer in self.adapted})
        for module in lent.modules():  # what a forward in another thread reads blocks by just now
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        return lent

    @property
    def device(self) -> torch.device:
        """Where the backbone lies."""
        return next(self.backbone.parameters()).device

    def pixels(self, images: Tensor) -> Tensor:
        """Pictures uint8 [B, H, W, 3] as the backbone takes them: normalised [B, 3, H, W] in the weights' dtype."""
        info = self.backbone.info
        return normalise(images.to(self.device), info.mean, info.std, next(self.backbone.parameters()).dtype)

    @contextmanager
    def watching(self, needs: Collection[str]) -> Iterator[None]:
        """Give what an objective needs (``Objective.needs``) in the ``Outputs`` of every forward inside.

        Predictions and all that looks at tokens alone cost what they cost outside.

        Raises:
            ValueError: a need that there is not.
        """
        if unknown := set(needs) - NEEDS:
            raise ValueError(f"nothing is known of {', '.join(sorted(unknown))}; needs: {', '.join(sorted(NEEDS))}")
        kept, self.watched = self.watched, frozenset(needs)
        try:
            yield
        finally:
            self.watched = kept

    def tokens(self, images: Tensor, needs: frozenset[str] = frozenset()) -> tuple[Tokens, Context]:
        """Float32 tokens of pictures uint8 [B, H, W, 3] with what is needed beside, and the context of this forward.

        Raises:
            ConfigError: the backbone cannot show it.
        """
        pixels = self.pixels(images)
        context = self.slot.adapter.plan(pixels, self)
        return self._observed(lambda: self.backbone(pixels), context, needs), context

    def resume(self, hidden: Tensor, blocks: int, grid: tuple[int, int], needs: frozenset[str] = frozenset()) -> Tokens:
        """Float32 tokens of pictures from the hidden states [B, L, d] that enter block ``blocks``; see ``Split``.

        No earlier block is adapted, and the adapter's ``plan`` does not look at the pictures.
        """
        backbone = self.backbone
        assert isinstance(backbone, Split)
        return self._observed(lambda: backbone.resume(hidden, blocks, grid), Context(), needs)

    def _observed(self, forward: Callable[[], Tokens], context: Context, needs: frozenset[str]) -> Tokens:
        self.slot.context = context
        try:
            casting, read = _casting(self.device.type, self.autocast), reading(self.backbone, self.reads)
            with casting, observing(self.backbone, needs) as observed, read as pooled:
                tokens = pooled(forward())
        finally:
            self.slot.context = Context()
        return observed(replace(tokens, pooled=tokens.pooled.float()))

    def forward(self, images: Tensor) -> Outputs:
        """What the loss sees of pictures uint8 [B, H, W, 3]: training logits, a map of them at the pictures' size."""
        tokens, _ = self.tokens(images, self.watched)
        return outputs_of(self.head, tokens, images.shape[1:3], self.watched)

    def predict(self, images: Tensor) -> Tensor:
        """Prediction logits of pictures uint8 [B, H, W, 3], [B, K] or a map [B, K, h, w] on the head's own grid.

        No row depends on another.
        """
        tokens, context = self.tokens(images)
        return self.adapter.calibrate(self.head(tokens), context)

    def fingerprint(self) -> str:
        """sha256 over all that the features of a picture follow from: weights as they stand, precision, blocks read."""
        info, tensors = self.backbone.info, list(self.adapter.state_dict().values())
        if self.adapter.trains_backbone:
            tensors += self.backbone.state_dict().values()
        live = [layer.live for layer in self.adapted]
        tensors += (layer.changed for layer in self.adapted if layer.changed is not None)
        digest = hashlib.sha256(f"{info.sha256} {self.reads} {self.precision} {live}".encode())
        for tensor in tensors:
            digest.update(tensor_digest(tensor))
        return digest.hexdigest()

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The backbone as it came, without adapter and past."""
        kept = [(layer.live, layer.changed) for layer in self.adapted]
        for layer in self.adapted:
            layer.live, layer.changed = False, None
        try:
            yield
        finally:
            for layer, (live, changed) in zip(self.adapted, kept, strict=True):
                layer.live, layer.changed = live, changed

    def trainable(self, *, adapt: bool = True) -> dict[str, nn.Parameter]:
        """Parameters that a round trains, by name; with ``adapt=False`` those of the head alone."""
        parts: list[tuple[str, nn.Module]] = [("head", self.head)]
        if adapt:
            parts.insert(0, ("adapter", self.adapter))
            if self.adapter.trains_backbone:
                parts.insert(0, ("backbone", self.backbone))
        return {
            f"{part}.{name}": parameter
            for part, module in parts
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def persistent(self, *, adapt: bool = True) -> dict[str, nn.Parameter]:
        """Those of ``trainable`` that live across rounds."""
        lasting = {f"adapter.{name}" for name, _ in self.adapter.persistent_parameters()}
        return {
            name: parameter
            for name, parameter in self.trainable(adapt=adapt).items()
            if not name.startswith("adapter.") or name in lasting
        }


class Teacher:
    """The network as it stood before the round, at the price of a clone of adapter and head.

    It runs on the student's frozen backbone. Only where the backbone itself trains must it be a copy of everything.
    It gives what the student is watched for, of its own forward.
    """

    def __init__(self, network: Network) -> None:
        self.student = network
        self.network, self.network_is_copy = network, network.adapter.trains_backbone
        if self.network_is_copy:
            self.network = copy.deepcopy(network, {id(network.memory): None})  # not the features it may hold
            self.adapter, self.head = self.network.adapter, self.network.head
        else:
            self.adapter, self.head = copy.deepcopy(network.adapter), copy.deepcopy(network.head)
        self.adapter.requires_grad_(False)
        self.head.requires_grad_(False)
        self.head.eval()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """What the teacher says of pictures uint8 [B, H, W, 3]; its logits have its own number of classes."""
        with self._answering():
            tokens, _ = self.network.tokens(images, self.student.watched)
        return self.from_tokens(tokens, images.shape[1:3])

    @torch.no_grad()
    def resume(self, hidden: Tensor, blocks: int, grid: tuple[int, int]) -> Tokens:
        """The teacher's tokens from the hidden states that the student resumes from too."""
        with self._answering():
            return self.network.resume(hidden, blocks, grid, self.student.watched)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        slot = self.network.slot
        student, slot.adapter = slot.adapter, self.adapter
        try:
            yield
        finally:
            slot.adapter = student

    @torch.no_grad()
    def from_tokens(self, tokens: Tokens, size: Sequence[int]) -> Outputs:
        """The same of tokens that are the teacher's own too (a backbone that stays)."""
        return outputs_of(self.head, tokens, size, self.student.watched)


def _place(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0


def _casting(device: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device):  # the meta device, on which costs are counted
        return nullcontext()
    return torch.autocast(device, dtype, enabled=dtype is not None)
