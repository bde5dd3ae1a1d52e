"""Cross entropy and distillation of all pixels in one pass over the logits, piece by piece.

A loss written with torch's functions keeps several tensors as large as the logits. Here the forward pass keeps one
number a pixel for each group of channels that a loss adds up, and the backward pass writes the gradient, nothing else.

Within a group g with r_g = log sum_{c in g} exp x_c, all gradients are exp(x_c - r_g) <= 1 times one factor a pixel.
The factors are made of exp(r_g - r) <= 1, with r a sum that holds the group, so that nothing overflows or cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Elements of a piece: what stays in a core's cache, or enough to keep a GPU busy.
_CPU_PIECE = 2**20
_GPU_PIECE = 2**24

Maps = tuple[Tensor, ...]


class Group(NamedTuple):
    """Channels that always go together.

    Attributes:
        channels: a slice where they are neighbours, else int64 indices.
        folded: the cross entropy adds them up to the background.
        background, known: channel 0; one of the teacher's channels. Both False without a teacher.
    """

    channels: slice | Tensor
    folded: bool
    background: bool
    known: bool


class PixelLosses(torch.autograd.Function):
    """(cross entropy, distillation) of every pixel, [B, H, W] each; None for the one whose input is None.

    Arguments of ``apply``: logits [B, C, H, W]; target [B, H, W] or None; teacher logits [B, K, H, W] or None; folded
    [C] bool, the channels that the cross entropy adds up to the background; ignore_index; alpha, which multiplies the
    teacher's logits; unbiased, whether the distillation adds the channels from K on to the background or leaves them
    out. See ``segmentation`` for the equations. Halves are computed in float32.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        logits: Tensor,
        target: Tensor | None,
        teacher: Tensor | None,
        folded: Tensor,
        ignore_index: int,
        alpha: float,
        unbiased: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        groups = _groups(folded.tolist(), 0 if teacher is None else teacher.shape[1], logits.device)
        folded = folded.to(logits.device)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        batch, channels, height, width = logits.shape
        sums = logits.new_empty((len(groups), batch, height, width), dtype=dtype)
        entropy = None if target is None else torch.empty_like(sums[0])
        distilled, told = (None, None) if teacher is None else (torch.empty_like(sums[0]), torch.empty_like(sums[0]))
        for images, rows in _pieces(logits):
            x = logits[images, :, rows].to(dtype)
            parts = tuple(torch.logsumexp(x[:, group.channels], 1) for group in groups)
            sums[:, images, rows] = torch.stack(parts)
            if target is not None and entropy is not None:
                valid, index, old = _read(target[images, rows], folded, ignore_index, channels)
                background, rest = _split(parts, groups, lambda group: group.folded)
                picked = x.gather(1, index[:, None]).squeeze(1)
                unsplit = torch.logaddexp(rest - background, torch.zeros_like(rest))
                value = torch.where(old, unsplit, torch.logaddexp(background, rest) - picked)
                entropy[images, rows] = value.masked_fill_(~valid, 0)
            if teacher is not None and distilled is not None and told is not None:
                known = teacher.shape[1]
                goal = teacher[images, :, rows].to(dtype) * alpha
                told[images, rows] = norm = torch.logsumexp(goal, 1)
                goal.sub_(norm[:, None]).exp_()
                background, others = _student(parts, groups, unbiased)
                whole = torch.logaddexp(background, others)
                value = goal[:, 0] * (whole - background)
                value -= (x[:, 1:known] - whole[:, None]).mul_(goal[:, 1:]).sum(1)
                distilled[images, rows] = value / known
        ctx.save_for_backward(logits, target, teacher, sums, told, folded)
        ctx.groups, ctx.ignore_index, ctx.alpha, ctx.unbiased = groups, ignore_index, alpha, unbiased
        ctx.set_materialize_grads(False)
        return entropy, distilled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, entropy: Tensor | None, distilled: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        logits, target, teacher, sums, told, folded = ctx.saved_tensors
        groups: list[Group] = ctx.groups
        gradient = torch.empty_like(logits)
        for images, rows in _pieces(logits):
            x = logits[images, :, rows].to(sums.dtype)
            out = gradient[images, :, rows]
            piece = out if out.dtype == x.dtype else torch.empty_like(x)
            parts = sums[:, images, rows].unbind(0)
            factors = [torch.zeros_like(parts[0]) for _ in groups]
            if entropy is not None:
                valid, index, old = _read(target[images, rows], folded, ctx.ignore_index, None)
                weight = torch.where(valid, entropy[images, rows], 0)
                _add_entropy(factors, parts, groups, weight, old)
            if distilled is not None:
                share = distilled[images, rows] / teacher.shape[1]
                goal = teacher[images, :, rows].to(x.dtype) * ctx.alpha
                goal.sub_(told[images, None, rows]).exp_()
                _add_distillation(factors, parts, groups, share, goal[:, 0], ctx.unbiased)
            for group, part, factor in zip(groups, parts, factors, strict=True):
                part, factor = part[:, None], factor[:, None]
                if isinstance(group.channels, slice):
                    torch.sub(x[:, group.channels], part, out=piece[:, group.channels]).exp_().mul_(factor)
                else:
                    piece[:, group.channels] = x[:, group.channels].sub_(part).exp_().mul_(factor)
            if entropy is not None:
                index = index[:, None]
                piece.scatter_(1, index, piece.gather(1, index) - torch.where(old, 0, weight)[:, None])
            if distilled is not None:
                piece[:, 1 : goal.shape[1]].addcmul_(goal[:, 1:], share[:, None], value=-1)
            if piece is not out:
                out.copy_(piece)
        return gradient, None, None, None, None, None, None


def _add_entropy(factors: list[Tensor], parts: Maps, groups: list[Group], weight: Tensor, old: Tensor) -> None:
    """Softmax of all channels at every pixel, less that of the folded ones where the target is among them."""
    background, rest = _split(parts, groups, lambda group: group.folded)
    whole = torch.logaddexp(background, rest)
    # d/dx_c (r - r_folded) = p_c - p_c / P(folded) = -P(rest) p_c / P(folded)
    pull = -weight * torch.sigmoid(rest - background)
    for factor, part, group in zip(factors, parts, groups, strict=True):
        value = weight * (part - whole).exp()
        factor += torch.where(old, pull * (part - background).exp(), value) if group.folded else value


def _add_distillation(
    factors: list[Tensor], parts: Maps, groups: list[Group], share: Tensor, goal: Tensor, unbiased: bool
) -> None:
    """Student's probabilities less the teacher's for the background; those of the others are taken off later."""
    background, others = _student(parts, groups, unbiased)
    whole = torch.logaddexp(background, others)
    excess = (background - whole).exp() - goal
    for factor, part, group in zip(factors, parts, groups, strict=True):
        if group.background or (unbiased and not group.known):
            factor += share * excess * (part - background).exp()
        elif group.known:
            factor += share * (part - whole).exp()


def _groups(folded: Sequence[bool], known: int, device: torch.device) -> list[Group]:
    keys = [(fold, known > 0 and channel == 0, channel < known) for channel, fold in enumerate(folded)]
    groups = []
    for key in dict.fromkeys(keys):
        members = [channel for channel, own in enumerate(keys) if own == key]
        first, stop = members[0], members[-1] + 1
        neighbours = stop - first == len(members)
        groups.append(Group(slice(first, stop) if neighbours else torch.tensor(members, device=device), *key))
    return groups


def _pieces(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """(pictures, rows) of the logits [B, C, H, W], each with about as many elements as a piece may have."""
    batch, channels, height, width = logits.shape
    rows = max(1, (_CPU_PIECE if logits.device.type == "cpu" else _GPU_PIECE) // max(1, channels * width))
    images = max(1, rows // max(1, height))
    for first in range(0, batch, images):
        for top in range(0, height, rows):
            yield slice(first, first + images), slice(top, top + rows)


def _read(target: Tensor, folded: Tensor, ignore_index: int, channels: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(counts, channel or 0, is folded) of every pixel; with ``channels``, targets beyond them are refused."""
    index = target.long()
    valid = index != ignore_index
    index = torch.where(valid, index, 0)
    # On a GPU looking would make it wait; there the gather asserts.
    if channels is not None and index.device.type == "cpu" and bool(((index < 0) | (index >= channels)).any()):
        outside = sorted(set(index[(index < 0) | (index >= channels)].tolist()))
        raise ValueError(f"targets hold {outside[:5]}, but the logits have channels 0..{channels - 1}")
    return valid, index, folded[index]


def _split(parts: Maps, groups: list[Group], chosen: Callable[[Group], bool]) -> tuple[Tensor, Tensor]:
    """(log of the exponentials' sum over the chosen groups, over the others), -inf for none."""
    mine = [part for part, group in zip(parts, groups, strict=True) if chosen(group)]
    rest = [part for part, group in zip(parts, groups, strict=True) if not chosen(group)]
    nothing = torch.full_like(parts[0], -torch.inf)
    return reduce(torch.logaddexp, mine or [nothing]), reduce(torch.logaddexp, rest or [nothing])


def _student(parts: Maps, groups: list[Group], unbiased: bool) -> tuple[Tensor, Tensor]:
    """(the student's background, its other channels) as the distillation sees them."""
    if not unbiased:
        pairs = [(part, group) for part, group in zip(parts, groups, strict=True) if group.known]
        parts, groups = tuple(part for part, _ in pairs), [group for _, group in pairs]
    return _split(parts, groups, lambda group: group.background or not group.known)
