"""Steps that repairs have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from sapwood.data.store import PictureStore
from sapwood.errors import ConfigError, DataError
from sapwood.heads.base import Features, Head, PooledHead
from sapwood.heads.gaussian import GradientHead
from sapwood.probes import probe_rows
from sapwood.progress import Progress
from sapwood.record import task_names
from sapwood.repair_correction import adapter_holds, anchored, correct, move_statistics, remembered
from sapwood.repair_draft import Draft
from sapwood.repair_names import Repair
from sapwood.repair_record import counted_for, groups_without, recount, without
from sapwood.repair_sums import (
    Row,
    Sums,
    called,
    channels,
    computed,
    kept_features,
    parameter_names,
    read_pictures,
    refit,
    regrouped,
    stacked,
    stays,
)


def finish(draft: Draft, note: str, remarks: Iterable[str]) -> Repair:
    """Commit; a round that is half learned goes, since what it was learned on is no more."""
    version = draft.commit(note)
    half = draft.state.training.clear()
    dropped = [] if half is None else [f"round {half.get('task')!r}, which was half learned, has been dropped too"]
    return Repair(version, (*remarks, *dropped))


def regroup(draft: Draft, head: Head, old: str, into: str | None) -> list[str]:
    """Take a class out of record, head, objective and adapter, or make it a part of another: remarks.

    Rows that were trained by gradients are corrected.
    """
    last, groups = len(draft.tasks) - 1, groups_without(task_names(draft.record), old, into)
    gaussians = remembered(head) if isinstance(head, GradientHead) else None
    names = parameter_names(head, lambda: head.regroup(groups))  # type: ignore[operator]
    if isinstance(head, Sums):
        head.settle()
    draft.record = without(draft.record, old, into)
    snapshot, remarks = regrouped(draft.part(last, "objective"), groups, names), []
    if isinstance(head, GradientHead):
        remarks = correct(draft, head, gaussians, groups)
        snapshot = anchored(snapshot, head)
    draft.put_part(last, "head", head.state())
    if any(snapshot):
        draft.put_part(last, "objective", snapshot)
    _close_experts(draft)
    return remarks


def _close_experts(draft: Draft) -> None:
    """No picture shall be taken for one of a round whose classes are all gone, as long as there are other rounds."""
    chosen: dict[int, bool] = {}
    for index, task in enumerate(draft.tasks):
        meta = (task["parts"].get("adapter") or {}).get("meta", {})
        if isinstance(meta.get("classes"), list):
            chosen[index] = bool(meta["classes"])
    for index, teaches in chosen.items():
        if not teaches and any(chosen.values()):
            tensors, meta = draft.part(index, "adapter")
            if len(tensors.get("centres", ())):
                draft.put_part(index, "adapter", (tensors | {"centres": tensors["centres"][:0]}, meta))


def forget_pictures(
    draft: Draft,
    head: Head,
    name: str,
    pictures: Any,
    inexact: bool,
    device: str | torch.device | None,
    progress: Progress,
) -> list[str]:
    """Take a class's pictures out of what is remembered, and out of the head's sums where that can be done exactly.

    Raises:
        ConfigError: it cannot, and ``inexact`` is off.
    """
    where = draft.state.path
    identifier = next(entry["id"] for entry in draft.record["classes"] if entry["name"] == name)
    names = {entry["id"]: entry["name"] for entry in draft.record["classes"]}
    gone: list[Row] = []
    for index, task in enumerate(draft.tasks):
        rows = draft.rows(index)
        keep = [row["label"] != identifier for row in rows]
        if not all(keep):
            gone += [row for row, kept in zip(rows, keep, strict=True) if not kept]
            features = draft.features(index)
            left = [row for row, kept in zip(rows, keep, strict=True) if kept]
            draft.put_rows(index, left, None if features is None else features[torch.tensor(keep)])
            recount(task, left, names)
    if not isinstance(head, Sums):
        if pictures is not None:
            raise ConfigError(f"--pictures: the head of {where} does not predict from sums over pictures; leave it out")
        return []
    if not stays(draft.record):
        return _still_there(name, "the features have moved since its pictures were learned")
    if refit(head, draft) or not gone or not head.shares_sums:
        return []
    # Of the version as it is: the draft has let go of them.
    known = kept_features(Draft(draft.state), {row["sha256"] for row in gone})
    missing = {row["sha256"] for row in gone} - known.keys()
    if missing and pictures is not None:
        known |= computed(draft.state, read_pictures(draft.state, pictures, progress), missing, device, progress)
        missing -= known.keys()
    if missing and not inexact:
        given = "are not among the --pictures" if pictures is not None else "have left no features in the state"
        raise ConfigError(
            f"{len(missing)} of {len({row['sha256'] for row in gone})} pictures of {name!r} {given}, so that the sums "
            f"of the head would still hold them: give them all with --pictures FOLDER, or go on with --inexact"
        )
    if found := [row for row in gone if row["sha256"] in known]:
        head.forget(stacked(found, known, channels(draft.record)))
    return _still_there(name, f"{len(missing)} of its pictures were not there to be taken out") if missing else []


def _called_so(draft: Draft, was: list[int], now: list[int], to: int) -> str:
    channel = channels(draft.record)[to]
    name = task_names(draft.record)[channel]
    return f"of {len(now)} given, {now.count(channel)} are called {name!r} now, {was.count(channel)} before"


def _still_there(name: str, why: str) -> list[str]:
    return [f"the sums that all classes share still hold {name!r}: {why}. No picture is called {name!r} any more"]


def holdovers(draft: Draft, head: Head, name: str) -> list[str]:
    """What may still hold a class once its own rows and statistics are gone."""
    found = []
    if head.fitted == "gradient":
        stay = "" if isinstance(head, GradientHead) else " and stay as they are"
        found.append(f"the rows of the other classes were trained beside that of {name!r}{stay}")
    if isinstance(head, GradientHead) and head.known.complete:
        found.append(f"the covariance that all classes share, of what is known, still holds pictures of {name!r}")
    return found + adapter_holds(draft, rounds_with(draft, name), f"on pictures of {name!r}")


def rounds_with(draft: Draft, name: str) -> list[int]:
    """Rounds that taught a class."""
    return [index for index, task in enumerate(draft.tasks) if name in task["annotated"]]


def relabel_sums(
    draft: Draft,
    head: Sums,
    before: Sequence[Row],
    store: PictureStore,
    to: int,
    device: str | torch.device | None,
    progress: Progress,
) -> list[str]:
    """Count pictures for another class (by its id) in a head's sums: remarks.

    Exact on a backbone that stays. Where the features have moved, those of today are moved: what the Gram matrix holds
    is the same under any label, and the rest differs by as much as the sums do from features of today.
    """
    assert isinstance(head, PooledHead)
    channel, same = channels(draft.record), stays(draft.record)
    if same and refit(head, draft):
        head.settle()
        return []
    wanted = [row["sha256"] for row in before]
    features = kept_features(draft, wanted) if same else {}
    rest = [sha256 for sha256 in wanted if sha256 not in features]
    features |= computed(draft.state, store, rest, device, progress)
    old = draft.state.version.record
    was = [] if same else called(old, draft.state, head, features, store, device, progress)
    head.forget(stacked(before, features, channel))
    head.observe(stacked([{**row, "label": to} for row in before], features, channel))
    head.settle()
    if same:
        return []
    now = called(draft.record, draft.state, head, features, store, device, progress)
    return [
        _called_so(draft, was, now, to),
        "the sums are not exactly what they would be had the pictures been learned so, since the features have moved: "
        "what was taken from one class and given to the other are features of today",
    ]


def relabel_rows(
    draft: Draft,
    head: GradientHead,
    before: Sequence[Row],
    store: PictureStore,
    to: int,
    device: str | torch.device | None,
    progress: Progress,
) -> list[str]:
    """Correct rows that were trained by gradients, once pictures have the label of another class (by its id): remarks.

    The pictures are put through the network as it is today.
    """
    channel, last = channels(draft.record)[to], len(draft.tasks) - 1
    features = computed(draft.state, store, [row["sha256"] for row in before], device, progress)
    was = called(draft.state.version.record, draft.state, head, features, store, device, progress)
    remarks = move_statistics(draft, head, before, features, channel)
    given = Features(torch.stack(list(features.values())), torch.full((len(features),), channel))
    same = [[index] for index in range(head.classes)]
    remarks = correct(draft, head, remembered(head), same, given) + remarks
    now = called(draft.record, draft.state, head, features, store, device, progress)
    remarks.insert(0, _called_so(draft, was, now, to))
    snapshot = anchored(draft.part(last, "objective"), head)
    if any(snapshot):
        draft.put_part(last, "objective", snapshot)
    return remarks


def other_labels(draft: Draft, pictures: Any, to: str, progress: Progress) -> tuple[list[int], list[Row], Any]:
    """Give pictures another label in what is remembered.

    Returns:
        Rounds that changed; the rows of these pictures as they were; the pictures, decoded.

    Raises:
        DataError: a picture that was never learned, or none that has another label.
    """
    store = read_pictures(draft.state, pictures, progress)
    identifier = next(entry["id"] for entry in draft.record["classes"] if entry["name"] == to)
    rounds = [draft.rows(index) for index in range(len(draft.tasks))]
    learned = {row["sha256"] for rows in rounds for row in rows}
    given = list(zip(store.pictures, store.sha256, strict=True))
    kept = {each.sha256: each.classes for each in probe_rows(draft.state)}
    for picture, sha256 in given:
        if sha256 in kept.keys() - learned:
            raise DataError(
                f"{picture.name}: was not learned, but is kept to measure on, as {', '.join(map(repr, kept[sha256]))}; "
                f"`sapwood probe {draft.state.path} --remove` lets go of all that is kept"
            )
    strange = [picture.name for picture, sha256 in given if sha256 not in learned]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise DataError(
            f"{strange[0]}{more}: was never learned by {draft.state.path} (pictures are known by their bytes); "
            "give the file that was learned, or learn it"
        )
    wanted = set(store.sha256)
    changed: list[int] = []
    before: list[Row] = []
    for index, rows in enumerate(rounds):
        other = [row for row in rows if row["sha256"] in wanted and row["label"] != identifier]
        if other:
            changed.append(index)
            before += other
            new = [
                counted_for(row, identifier, draft.record["classes"])
                if row["sha256"] in wanted and row["label"] != identifier
                else row
                for row in rows
            ]
            draft.put_rows(index, new, None)
    if not before:
        raise DataError(f"nothing to change: of class {to!r} they are already, all that were given")
    return changed, before, store
