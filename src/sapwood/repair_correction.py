"""A short correction round: rows that were trained by gradients, re-tuned on what the head keeps of the classes.

The stage of SLCA (Zhang et al., ICCV 2023) that aligns a classifier, where a class has gone or a label was wrong. No
picture of before is needed: features are drawn from the classes' Gaussians.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.adapters.experts import Experts
from sapwood.heads.base import Features
from sapwood.heads.class_gaussians import ClassGaussians
from sapwood.heads.classifiers import Groups
from sapwood.heads.gaussian import GradientHead, free_logits
from sapwood.record import task_names
from sapwood.repair_draft import Draft
from sapwood.repair_sums import Row, adapted, channels, stays
from sapwood.task import Snapshot, Task

_ITERATIONS = 10  # few: on features drawn from Gaussians, rows can be tuned too well
_WEIGHTS = (1, 4, 16)  # of pictures with another label, in classes, until they are called by it
_TESTS = 64  # features of each class on which it is seen what re-tuning does
_HURT = 0.05  # share of a class that people are told of if it is lost


def remembered(head: GradientHead) -> ClassGaussians | None:
    """What features of the classes may be drawn from; None where the head keeps nothing of the kind.

    What tells known pictures from others has followed the features wherever they moved; states of early releases lack
    it, and have Gaussians only if the head was aligned.
    """
    if head.known.complete and bool(head.sums.count.any()):
        return ClassGaussians.of(head.sums)
    return copy.deepcopy(head.gaussians) if head.gaussians is not None and head.gaussians.rounds else None


def move_statistics(
    draft: Draft, head: GradientHead, before: Sequence[Row], features: dict[str, Tensor], to: int
) -> list[str]:
    """Count pictures for another class in what is kept of the classes, by their features of today: remarks.

    Args:
        draft: whose rows have the new labels already.
        head: changed in place.
        before: rows of the pictures with the labels of before.
        features: [d] of each picture by its sha256.
        to: channel of the new class.
    """
    channel = channels(draft.record)
    left = Counter(row["label"] for index in range(len(draft.tasks)) for row in draft.rows(index))
    exact = stays(draft.record) or (head.gaussians is None and not head.known.complete)
    for label in sorted({row["label"] for row in before}):
        rows, old = [row for row in before if row["label"] == label], channel[label]
        x = torch.stack([features[row["sha256"]] for row in rows])
        trained = x[torch.tensor([row["split"] == "train" for row in rows])]
        if head.gaussians is not None and len(trained):
            head.gaussians.forget(Features(trained, torch.full((len(trained),), old)))
            head.gaussians.observe(Features(trained, torch.full((len(trained),), to)))
        if head.known.complete:
            # Of large rounds only a part has gone into these sums, and which one is not remembered.
            there, learned = int(head.known.count[old]), left[label] + len(rows)
            exact = exact and there == learned
            head.known.forget(x, old, min(there, round(len(rows) * there / learned)))
            head.known.observe(x, torch.full((len(x),), to))
    if exact:
        return []
    return [
        "class means and covariances follow by the features that these pictures have today, not exactly as if they had "
        "been learned so: what was added up in their round is not kept picture by picture"
    ]


def correct(
    draft: Draft, head: GradientHead, gaussians: ClassGaussians | None, groups: Groups, given: Features | None = None
) -> list[str]:
    """Re-tune the rows of a head on features drawn from its classes: remarks on what came of it.

    Rows stay as they are where fewer of other features drawn so would be called by their class afterwards.

    Args:
        draft: whose record has the classes of afterwards.
        head: the same; its classifier is changed in place.
        gaussians: of the classes of before (``remembered``).
        groups: classes of before in each class of afterwards.
        given: features that are there, and their classes: tuned on beside the others, until they are called so.
    """
    names = task_names(draft.record)
    if len(names) < 2:
        return []
    drawn = (
        set() if gaussians is None else {new for new, group in enumerate(groups) if gaussians.count[list(group)].any()}
    )
    if gaussians is None or len(drawn) + (given is not None) < 2:
        return [
            "nothing was corrected: this state keeps nothing of how its classes look, on which to re-tune their rows"
        ]
    unseen = _learned(draft) - drawn - set([] if given is None else given.y.tolist())
    fields = _fields(draft, len(names))
    generator = Task(len(draft.tasks), "", (), (), 0, draft.record["seed"]).generator("correction")
    samples, tests = (
        _draw(gaussians, count, head.config.covariance_ridge, groups, generator)
        for count in (head.config.align_samples, _TESTS)
    )
    was, kept = _right(head, tests, fields), copy.deepcopy(head.classifier.state_dict())
    size, was_given = _size(head, tests), _right_share(head, given, fields)
    for weight in (0,) if given is None else _WEIGHTS:
        head.classifier.load_state_dict(kept)
        for field in fields:
            _tune(head, samples, given, weight, field, [channel for channel in field if channel not in unseen])
        if _right_share(head, given, fields) == 1:
            break
    now = _right(head, tests, fields)
    shares = [sum(each.values()) / len(each) for each in (was, now)]
    finite = all(bool(row.isfinite().all()) for row in head.classifier.parameters())
    if not finite or sum(now.values()) + _right_share(head, given, fields) < sum(was.values()) + was_given:
        head.classifier.load_state_dict(kept)
        return [
            "nothing was corrected: rows re-tuned on the Gaussians that the head keeps would call fewer features by "
            f"their class ({100 * shares[1]:.1f} % of those drawn, {100 * shares[0]:.1f} % as they are)"
        ]
    said = [
        "the rows of the classes were re-tuned on features drawn from the Gaussians that the head keeps of them: of "
        f"others drawn so {100 * shares[1]:.1f} % are called by their class, {100 * shares[0]:.1f} % before"
    ]
    if hurt := [names[c] for c in now if now[c] < was[c] - _HURT]:
        said.append(f"fewer of these classes than before: {', '.join(map(repr, hurt))}")
    if unseen:
        kept_rows = ", ".join(repr(names[channel]) for channel in sorted(unseen))
        said.append(f"nothing is kept of how these classes look, so that their rows stay as they are: {kept_rows}")
    # The loss leaves the logits' size free: scores stay as sure as they were. Pictures are held out in rounds alone.
    head.temperature *= (_size(head, tests) / size) or 1.0 if size else 1.0
    head.calibrated, head.told = False, 0
    said.append("scores are not calibrated any more, until a round with validation pictures is learned")
    return said


def adapter_holds(draft: Draft, rounds: Iterable[int], what: str) -> list[str]:
    """What an adapter may still hold that was trained in some of these rounds: ``what`` fills "was trained …"."""
    names = [
        repr(draft.tasks[index]["name"])
        for index in rounds
        if draft.record["parts"]["adapter"] != "none" and adapted(draft.record, draft.tasks[index])
    ]
    if not names:
        return []
    return [
        f"the adapter was trained {what} in round {', '.join(names)}, and may still hold what it learned from them; "
        "only a state that is learned anew without them does not"
    ]


def anchored(snapshot: Snapshot, head: GradientHead) -> Snapshot:
    """What an objective keeps of the network's parameters, anchored at the rows as they are now."""
    tensors, meta = snapshot
    rows = {f"anchor.head.{name}": value.detach() for name, value in head.named_parameters()}
    return {name: rows[name].clone() if name in rows else tensor for name, tensor in tensors.items()}, meta


def _learned(draft: Draft) -> set[int]:
    """Channels of classes that have pictures."""
    channel = channels(draft.record)
    labels = (row["label"] for index in range(len(draft.tasks)) for row in draft.rows(index))
    return {channel[label] for label in labels if label in channel}


def _fields(draft: Draft, classes: int) -> list[list[int]]:
    """Classes that are told from one another: all, or those of each expert where one is chosen for every picture."""
    everything = list(range(classes))
    if not issubclass(ADAPTERS[draft.record["parts"]["adapter"]], Experts):
        return [everything]
    parts = [task["parts"].get("adapter") for task in draft.tasks]
    own: list[list[int]] = [part["meta"]["classes"] for part in parts if part is not None]
    free = set(everything).difference(*own)  # ruled out nowhere
    return [sorted({*field, *free}) for field in own]


def _draw(gaussians: ClassGaussians, count: int, ridge: float, groups: Groups, generator: torch.Generator) -> Features:
    """Features of every class, about equally many, of those that it was before."""
    x, y = gaussians.sample(count, ridge, generator)
    chosen, labels = [], []
    for new, group in enumerate(groups):
        for old in group:
            chosen.append(x[y == old][:: len(group)])
            labels.append(torch.full((len(chosen[-1]),), new))
    return Features(torch.cat(chosen), torch.cat(labels))


def _tune(
    head: GradientHead,
    samples: Features,
    given: Features | None,
    weight: float,
    field: Collection[int],
    among: Sequence[int],
) -> None:
    """Minimise the loss of alignment over classes ``among`` those of a field, rows of others stay as they are.

    By L-BFGS, which unlike plain steps of a fixed length suits features of any scale. Every class counts alike, what
    is given as much as ``weight`` classes.
    """
    parts = [(samples, torch.ones(len(samples.y)))]
    if given is not None and weight:
        each = weight * head.config.align_samples / len(given.y)
        parts.append((given, torch.full((len(given.y),), float(each))))
    x, y, weights = (torch.cat(each) for each in zip(*((*part, own) for part, own in parts), strict=True))
    own = torch.isin(y, torch.tensor(sorted(field), dtype=torch.int64))
    x, y, weights = x[own], y[own], weights[own]
    if len(among) < 2 or not len(y):
        return
    columns = torch.tensor(sorted(among))
    target = torch.searchsorted(columns, y)
    optimiser = torch.optim.LBFGS(head.classifier.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimiser.zero_grad()
        logits = free_logits(head.classifier(x)[:, columns], head.config)
        losses = F.cross_entropy(logits, target, reduction="none")
        mean = (losses * weights).sum() / weights.sum()
        mean.backward()
        return mean.item()

    with torch.enable_grad():
        optimiser.step(loss)
    optimiser.zero_grad()


@torch.no_grad()
def _right(head: GradientHead, features: Features, fields: Sequence[Collection[int]]) -> dict[int, float]:
    """Share of each class's features that are called so in the fields that have the class."""
    right: Counter[int] = Counter()
    total: Counter[int] = Counter()
    logits = head.logits(features.x)
    for field in fields:
        among = torch.tensor(sorted(field), dtype=torch.int64)
        own = torch.isin(features.y, among)
        called = among[logits[own][:, among].argmax(1)] if len(among) else among
        for label, good in zip(features.y[own].tolist(), (called == features.y[own]).tolist(), strict=True):
            total[label] += 1
            right[label] += good
    return {label: right[label] / total[label] for label in sorted(total)}


@torch.no_grad()
def _size(head: GradientHead, features: Features) -> float:
    """Mean distance of the logits [n, K] from their mean over the classes."""
    logits = head.logits(features.x)
    return float((logits - logits.mean(1, keepdim=True)).norm(dim=1).mean())


def _right_share(head: GradientHead, given: Features | None, fields: Sequence[Collection[int]]) -> float:
    shares: Any = {} if given is None else _right(head, given, fields)
    return sum(shares.values()) / len(shares) if shares else 1.0
