"""Losses of class-incremental learning, as functions of logits and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def scoped_cross_entropy(logits: Tensor, target: Tensor, scope: Tensor | None = None) -> Tensor:
    """Cross entropy over the softmax of some classes only.

    Logits outside the scope get gradient exactly zero, so their rows of a head do not move.

    Args:
        logits: [B, K].
        target: [B] int64, class indices among all K; each must lie in the scope.
        scope: [S] int64, distinct class indices; None: all K (loss over all seen classes).

    Returns:
        Scalar, nats an image.

    Raises:
        ValueError: a target is outside the scope (looked at on the CPU only; on a GPU the kernel asserts).

    >>> z = torch.tensor([[2.0, 0.0, 9.0]])
    >>> round(scoped_cross_entropy(z, torch.tensor([0]), torch.tensor([0, 1])).item(), 4)
    0.1269
    """
    if scope is None:
        return F.cross_entropy(logits, target)
    scope = scope.to(logits.device)
    place = torch.full((logits.shape[1],), -1, dtype=torch.int64, device=logits.device)
    place[scope] = torch.arange(len(scope), device=logits.device)
    local = place[target]
    if not local.is_cuda and bool((local < 0).any()):
        outside = sorted(set(target[local < 0].tolist()))
        raise ValueError(f"classes {outside} are targets but lie outside the loss's scope {sorted(scope.tolist())}")
    return F.cross_entropy(logits[:, scope], local)


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Cross entropy between a teacher's and a student's softened predictions (LwF, Li and Hoiem 2016).

    -(1/B) sum_b sum_{c < K_old} softmax(teacher / T)_c log softmax(student[:, :K_old] / T)_c, as PyCIL computes it: no
    factor T^2, and not the KL divergence, from which it differs by the teacher's entropy (the gradient is the same).

    Args:
        logits: [B, K] of the student, K >= K_old; columns from K_old on are left out.
        teacher_logits: [B, K_old]; no gradient flows into it.
        temperature: T > 0.

    Returns:
        Scalar, nats an image.

    >>> round(distillation(torch.tensor([[0.0, 0.0, 7.0]]), torch.tensor([[3.0, 3.0]])).item(), 4)
    0.6931
    """
    known = teacher_logits.shape[1]
    if not 0 < known <= logits.shape[1]:
        raise ValueError(f"the teacher has {known} classes, the student {logits.shape[1]}")
    goal = F.softmax(teacher_logits.detach() / temperature, dim=1)
    return -(goal * F.log_softmax(logits[:, :known] / temperature, dim=1)).sum(1).mean()


def quadratic_penalty(
    values: Mapping[str, Tensor], anchors: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Tensor:
    """1/2 sum_i F_i (theta_i - theta*_i)^2 over the entries that existed at the anchor (EWC, Kirkpatrick 2017, eq. 3).

    Args:
        values: current parameters by name; rows that were appended since the anchor are left out.
        anchors: theta* by name; a name that ``values`` lacks is an error.
        weights: F by name, shaped like the anchors.

    Returns:
        Scalar; zero without anchors.

    >>> theta = {"w": torch.tensor([1.0, 5.0])}  # its second row was added later
    >>> quadratic_penalty(theta, {"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])}).item()
    4.0
    """
    total = torch.zeros(())
    for name, anchor in anchors.items():
        part = _overlap(values[name], anchor)
        total = total.to(part.device) + (weights[name] * (part - anchor).square()).sum() / 2
    return total


def fisher_diagonal(
    losses: Iterable[Tensor], parameters: Mapping[str, Tensor], clip: float | None = None
) -> dict[str, Tensor]:
    """Mean of the squared gradients of several losses: the diagonal of the empirical Fisher information.

    One loss an image, its cross entropy, gives the empirical Fisher itself; one loss a batch, the mean of theirs, gives
    PyCIL's quantity, whose size depends on the batch.

    Args:
        losses: scalars with a graph each; may be a generator, only one graph lives at a time.
        parameters: by name; those a loss does not reach count as gradient zero.
        clip: the mean's upper limit (PyCIL: 1e-4); None for none.

    Returns:
        Tensors shaped like the parameters; zeros if there is no loss.

    >>> w = torch.tensor([2.0], requires_grad=True)
    >>> fisher_diagonal((k * w.sum() for k in (1.0, 3.0)), {"w": w})["w"].tolist()
    [5.0]
    """
    sums = {name: torch.zeros_like(value, requires_grad=False) for name, value in parameters.items()}
    count = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.detach().square()
        count += 1
    means = {name: total / max(count, 1) for name, total in sums.items()}
    return means if clip is None else {name: mean.clamp(max=clip) for name, mean in means.items()}


def merge_fisher(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], old_share: float, new_share: float | None = None
) -> dict[str, Tensor]:
    """Fisher information of all tasks so far: old_share * F_old + new_share * F_new where both have entries.

    PyCIL: old_share = K_old / K, new_share its complement (the default). Online EWC (Mammoth): gamma and 1. Rows
    that only F_new has keep its value, as do names that are new; names that only F_old has keep F_old.

    >>> merge_fisher({"w": torch.tensor([4.0])}, {"w": torch.tensor([2.0, 7.0])}, 0.5)["w"].tolist()
    [3.0, 7.0]
    """
    share = 1 - old_share if new_share is None else new_share
    merged = {name: value.clone() for name, value in old.items()}
    for name, value in new.items():
        merged[name] = value.clone()
        if name in old:
            part = _overlap(merged[name], old[name])
            part.copy_(old_share * old[name] + share * part)
    return merged


def _overlap(value: Tensor, anchor: Tensor) -> Tensor:
    """View of the entries of ``value`` that lie within the shape of ``anchor``."""
    if value.ndim != anchor.ndim or any(now < then for now, then in zip(value.shape, anchor.shape, strict=True)):
        raise ValueError(f"a parameter can only grow: {tuple(anchor.shape)} at the anchor, now {tuple(value.shape)}")
    return value[tuple(slice(size) for size in anchor.shape)]
