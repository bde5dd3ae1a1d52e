"""One logit a class for every patch: a small decoder, then one 1x1 classifier a round (CLoRA, arXiv 2507.19887)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.backbones.base import Tokens
from sapwood.heads.base import Head, in_full_precision
from sapwood.heads.classifiers import Groups, LinearClassifier
from sapwood.heads.decoders import (
    KERNELS,
    BranchStart,
    ConvNorm,
    ParallelConv,
    decoder_width,
    draw_weights,
    make_decoder,
)
from sapwood.heads.settings import fault_unless_among, refuse
from sapwood.task import Task

Decoder = Literal["none", "conv1x1", "conv3x3", "aspp"]
Background = Literal["class", "unknown", "auxiliary"]
Stem = Literal["shared", "per_task"]
Branches = Literal["single", "parallel"]


@dataclass(frozen=True)
class DenseConfig:
    """Settings of the dense head.

    Attributes:
        decoder: ``conv1x1`` or ``conv3x3``, one convolution d -> d with ReLU that goes on learning in every round;
            ``aspp``, DeepLabV3's with 256 channels; ``none``: the classifiers sit on the backbone's own features.
        background: what channel 0 is. ``class``, one like the others; ``unknown``, the same, and a further channel
            behind all classes for what is none of those known so far (SSUL); predictions add its probability to the
            background's. ``auxiliary``, a classifier that teaches the decoder nothing and from which new ones may
            begin; predictions draw background where no class has a probability above one half (DKD).
        stem: ``shared``, all 1x1 classifiers read the decoder's output; ``per_task``, the background, the unknown
            class and each round's classes read it through a 3x3 convolution, batch normalisation and ReLU of their
            own (SSUL).
        branches: ``single``; ``parallel``, two for the decoder's convolution (the first four of ``aspp``), merged
            after each round (RCIL; see ``ParallelConv``).
        branch_start: where the new one of parallel branches begins in later rounds: ``official`` or ``preserve``.
    """

    decoder: Decoder = "conv1x1"
    background: Background = "class"
    stem: Stem = "shared"
    branches: Branches = "single"
    branch_start: BranchStart = "official"

    def __post_init__(self) -> None:
        faults = [
            *fault_unless_among("decoder", self.decoder, ("none", *KERNELS, "aspp")),
            *fault_unless_among("background", self.background, ("class", "unknown", "auxiliary")),
            *fault_unless_among("stem", self.stem, ("shared", "per_task")),
            *fault_unless_among("branches", self.branches, ("single", "parallel")),
            *fault_unless_among("branch_start", self.branch_start, ("official", "preserve")),
        ]
        if self.branches == "parallel" and self.decoder == "none":
            faults.append(f"branches=parallel needs a decoder: {', '.join(KERNELS)} or aspp")
        refuse("dense", faults)


class DenseHead(Head):
    """Logits [B, C, h, w] on the patch grid: the background, the classes, and the unknown class if there is one.

    The 1x1 classifiers of all rounds are the rows of one: a softmax over them runs over all classes so far. That of
    the unknown class is ``unknown``, a classifier of one row.

    Attributes:
        decoder: maps [B, d, h, w] to [B, width, h, w], before the last ReLU; None for none.
        stems: by ``background``, ``unknown`` and ``group1``, ``group2``, ...; None where they are shared.
        groups: number of rows of the classifier behind each stem: that of the background, then of each round.

    >>> head = DenseHead(DenseConfig(), dim=8)
    >>> head.grow(3, torch.Generator())
    >>> patches = torch.zeros(2, 6, 8)
    >>> head(Tokens(patches.mean(1), patches, (2, 3))).shape
    torch.Size([2, 3, 2, 3])
    """

    kind: ClassVar[str] = "segmentation"
    name: ClassVar[str] = "dense"
    Config: ClassVar[type] = DenseConfig
    summary: ClassVar[str] = "a decoder (one convolution) and a 1x1 classifier a round, on every patch"
    growth: ClassVar[str] = "d + 1 numbers a class"

    def __init__(self, config: DenseConfig, dim: int) -> None:
        super().__init__(config, dim)
        start = config.branch_start if config.branches == "parallel" else None
        self.decoder = make_decoder(config.decoder, dim, start)
        self.classifier: LinearClassifier
        self.unknown = LinearClassifier(self.width, size=1.0) if config.background == "unknown" else None
        self.stems = nn.ModuleDict() if config.stem == "per_task" else None
        self.groups: list[int] = []
        self.eval()  # batch normalisation counts the batch in training alone

    @property
    def width(self) -> int:
        """Channels that the classifiers read."""
        return decoder_width(self.config.decoder, self.dim)

    def make_classifier(self) -> LinearClassifier:
        """The classifier of background and classes, without rows."""
        return LinearClassifier(self.width, size=1.0)

    def grow(self, count: int, generator: torch.Generator) -> None:
        """Append ``count`` classifiers; before the first, the decoder's weights and the unknown class's are drawn."""
        if not self.classes and count > 0:
            if self.decoder is not None:
                draw_weights(self.decoder, generator)
            if self.unknown is not None:
                self.unknown.grow(1, generator)
        if self.stems is not None and count > 0:
            # Channel 0 is the background's, which shares its stem with no class.
            added = [count] if self.groups else [1, count - 1]
            for name in self._add_stems([each for each in added if each]):
                draw_weights(self.stems[name], generator)
        super().grow(count, generator)

    def _add_stems(self, groups: list[int]) -> list[str]:
        """Stems for further groups of rows, not drawn yet, and their names."""
        assert self.stems is not None
        names = []
        if not self.groups:
            names.append("background")
            if self.unknown is not None:
                names.append("unknown")
        first = max(1, len(self.groups))
        self.groups += groups
        names += [f"group{number}" for number in range(first, len(self.groups))]
        for name in names:
            self.stems[name] = ConvNorm(self.width, self.width, 3).train(self.training)
        return names

    def regroup(self, groups: Groups) -> None:
        """Keep one channel a group, that of its first class; a stem that serves none any more goes."""
        kept = {group[0] for group in groups}
        if self.stems is not None:
            ends = list(accumulate(self.groups))
            counts = [len(kept.intersection(range(end - own, end))) for own, end in zip(self.groups, ends, strict=True)]
            stems = nn.ModuleDict({name: stem for name, stem in self.stems.items() if not name.startswith("group")})
            left = [number for number, count in enumerate(counts) if count and number > 0]
            for position, number in enumerate(left, 1):
                stems[f"group{position}"] = self.stems[f"group{number}"]
            self.stems, self.groups = stems, [counts[0], *(counts[number] for number in left)]
        self.classifier.regroup(groups)

    def stem_of(self, channel: int) -> ConvNorm | None:
        """The stem of a channel of the logits (``classes`` is the unknown one); None where they are shared."""
        if self.stems is None:
            return None
        end = 0
        for name, count in self._groups():
            end += count
            if channel < end:
                return self.stems[name]  # type: ignore[return-value]
        raise IndexError(f"channels of the logits are 0..{end - 1}, got {channel}")

    def _groups(self) -> Iterator[tuple[str, int]]:
        """Names of stems and how many channels each serves, in the order of the logits."""
        for number, count in enumerate(self.groups):
            yield ("background" if number == 0 else f"group{number}"), count
        if self.unknown is not None:
            yield "unknown", 1

    def copy_stem(self, channel: int, to: int) -> None:
        """Let the stem of one channel of the logits begin as that of another, where stems are not shared."""
        source, target = self.stem_of(channel), self.stem_of(to)
        if source is not None and target is not None:
            target.load_state_dict(source.state_dict())

    def rest(self) -> None:
        """Freeze the decoder for a round, and leave its parallel branches merged."""
        if self.decoder is None:
            return
        for module in self.decoder.modules():
            if isinstance(module, ParallelConv):
                module.rest()
        self.decoder.requires_grad_(False)

    def before_task(self, task: Task) -> None:
        """Open the parallel branches."""
        for module in self.modules():
            if isinstance(module, ParallelConv):
                module.before_task(task)

    def after_task(self, task: Task) -> None:
        """Merge the parallel branches."""
        for module in self.modules():
            if isinstance(module, ParallelConv):
                module.after_task()

    def forward(self, tokens: Tokens) -> Tensor:
        """Logits [B, C, h, w] float32 on the grid of the patches [B, h * w, d]."""
        return self.classify(self.decode(tokens))

    def decode(self, tokens: Tokens) -> Tensor:
        """The decoder's output [B, width, h, w] float32, which the classifiers (or their stems) read."""
        (height, width), patches = tokens.grid, tokens.patches
        return in_full_precision(self._decode, patches.transpose(1, 2).unflatten(2, (height, width)))

    def classify(self, maps: Tensor) -> Tensor:
        """Logits [B, C, h, w] float32 of the decoder's output."""
        return in_full_precision(self._classify, maps)

    def _decode(self, maps: Tensor) -> Tensor:
        return maps if self.decoder is None else F.relu(self.decoder(maps))

    def _classify(self, maps: Tensor) -> Tensor:
        weight: Tensor = self.classifier.weight[:, :, None, None]
        bias: Tensor = self.classifier.bias
        if self.unknown is not None:
            weight = torch.cat([weight, self.unknown.weight[:, :, None, None]])
            bias = torch.cat([bias, self.unknown.bias])
        auxiliary = self.config.background == "auxiliary"
        if self.stems is None and not auxiliary:
            return F.conv2d(maps, weight, bias)
        groups = list(self._groups()) if self.stems is not None else [("", 1), ("", self.classes - 1)]
        found, start = [], 0
        for name, count in groups:
            read = maps.detach() if auxiliary and start == 0 else maps
            if self.stems is not None:
                read = F.relu(self.stems[name](read))
            found.append(F.conv2d(read, weight[start : start + count], bias[start : start + count]))
            start += count
        return torch.cat(found, 1)

    @property
    def decides(self) -> bool:
        """Whether ``decision`` changes logits."""
        return self.config.background != "class"

    def decision(self, logits: Tensor) -> Tensor:
        """Numbers [B, K, h, w] whose largest is the prediction, of logits [B, C, h, w] at any size.

        With an unknown class they are probabilities of one class each, its own added to the background's (SSUL); with
        an auxiliary background the logits, that of the background 0, a probability of one half (DKD).
        """
        if self.config.background == "unknown":
            chances = logits.sigmoid()
            return torch.cat([chances[:, :1] + chances[:, -1:], chances[:, 1:-1]], 1)
        if self.config.background == "auxiliary":
            return torch.cat([torch.zeros_like(logits[:, :1]), logits[:, 1:]], 1)
        return logits

    def running(self) -> dict[str, Tensor]:
        """Statistics of batch normalisations, and how many training forwards parallel branches have seen."""
        return dict(self.named_buffers())

    def meta(self) -> dict[str, Any]:
        """Facts stored beside the tensors, as JSON: those of every head, and what has grown or merged."""
        facts = super().meta()
        if self.stems is not None:
            facts["groups"] = list(self.groups)
        for module in self.modules():
            if isinstance(module, ParallelConv):  # all are alike
                facts |= {"merged": module.merged, "open": module.open}
        return facts

    def make_room(self, meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Add the stems, and give the branches the form, that the facts tell of."""
        if self.stems is not None and meta["groups"]:
            self.stems, self.groups = nn.ModuleDict(), []
            self._add_stems(list(meta["groups"]))
        for module in self.modules():
            if isinstance(module, ParallelConv):
                module.take_form(merged=meta["merged"], is_open=meta["open"])
        unknown = min(1, meta["classes"])  # it comes with the first rows
        return super().make_room(meta) | {"unknown.weight": (unknown, self.width), "unknown.bias": (unknown,)}
