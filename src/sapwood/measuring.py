"""A state measured on pictures that it did not learn from, and on pictures of nothing that it was taught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from sapwood.data.given import as_pictures
from sapwood.errors import ConfigError
from sapwood.history import after_measuring
from sapwood.kinds import Kind
from sapwood.learned import Tests, count_learned, learned_files, learned_pictures
from sapwood.network import Network
from sapwood.preparation import check_kind
from sapwood.progress import Progress
from sapwood.record import former_names, task_names
from sapwood.state import State
from sapwood.state.records import StateMoved


class Opened(Protocol):
    """What is measured: a ``Learner``."""

    state: State

    @property
    def kind(self) -> Kind:
        """Of task."""

    @property
    def network(self) -> Network:
        """Of the current version."""


def measure(
    learner: Opened,
    data: Any,
    *,
    record: bool = False,
    unknown: Any = None,
    options: Any = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Measure on labelled pictures of known classes: an ``Evaluation`` or ``MaskEvaluation``.

    Args:
        learner: open on the version that is measured.
        data: labelled pictures, or pictures with masks, of the learner's kind.
        record: fill the last row of the matrix with the result.
        unknown: pictures of other classes, with or without labels: how many of them are taken for known ones?
        options: ``MaskOptions``, for masks.
        skip_bad: leave unreadable pictures out.
        progress: listens to what happens.

    Raises:
        UsageError: pictures cannot be read, or are of unknown classes; ``unknown`` was given for masks.
    """
    progress, kind, network = progress or Progress(), learner.kind, learner.network
    version = learner.state.version  # once the network is there: a version that has been pruned is not the one any more
    facts = version.record
    names, size, least = task_names(facts), facts["image_size"], facts["backbone"]["patch"]
    if not names:
        raise ConfigError(
            f"{learner.state.path} has learned nothing yet; run: sapwood learn {learner.state.path} FOLDER"
        )
    check_kind(learner.state, data)
    if unknown is not None and not kind.knows_unknown:
        raise ConfigError("--unknown: only for states that name pictures; this one draws masks")
    tests = kind.load(kind.read_tests(data), size, progress, skip_bad=skip_bad, least=least)
    for remark in kind.check_tests(tests, names, former_names(facts), options):
        progress.note(remark)
    found: dict[str, Any] = {"learned_images": _learned(learner.state, tests)}
    if found["learned_images"]:
        progress.note(f"{found['learned_images']} of the test pictures were learned: they measure too much")
    if unknown is not None:
        others = kind.load(as_pictures(unknown), size, progress, skip_bad=skip_bad, least=least)
        found |= {"unknown_images": len(others), "false_accept": kind.accepted(network, others, size, progress)}
    confusion, details = kind.outcomes(network, tests, names, size, progress, options)
    if record:
        with learner.state.writer():
            learner.state.commit(after_measuring(facts, names, tests, confusion, options), {}, "evaluate --record")
            version = learner.state.version
    return replace(kind.evaluation(confusion, len(tests), facts, version.id, options), **details, **found)


def _learned(state: State, tests: Tests) -> int | None:
    """How many different pictures were learned; None if that can no longer be read, as the version was pruned."""
    try:
        return count_learned(learned_files(learned_pictures(state)), tests)
    except StateMoved:
        return None
