"""Taking pictures out of a head's sums again, or counting them for another class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.assembly import assemble, config_types, resolve_device, resolve_precision, training_config
from sapwood.backbones.base import BackboneInfo
from sapwood.data.given import as_pictures
from sapwood.data.store import PictureStore
from sapwood.depths import width_read
from sapwood.errors import ConfigError
from sapwood.heads import HEADS
from sapwood.heads.base import Features, Head, PooledHead
from sapwood.heads.classifiers import Groups
from sapwood.kinds import KINDS
from sapwood.network import Network
from sapwood.passing import extract, run_pass
from sapwood.progress import Progress
from sapwood.repair_draft import Draft
from sapwood.settings import build
from sapwood.state import State
from sapwood.task import Snapshot

_SMALLEST_BATCH = 32
Row = Mapping[str, Any]


@runtime_checkable
class Regroups(Protocol):
    """A head whose classes can become others."""

    def regroup(self, groups: Groups) -> None:
        """Make each new class of the old ones in its group."""


@runtime_checkable
class Sums(Regroups, Protocol):
    """A head that predicts from sums over pictures, from which pictures can be taken out again."""

    @property
    def shares_sums(self) -> bool:
        """Whether what is kept of classes together holds their pictures."""

    def observe(self, features: Features) -> None:
        """Add pictures."""

    def forget(self, features: Features) -> None:
        """Take pictures out that were added under these classes."""

    def clear(self) -> None:
        """Take all pictures out."""

    def settle(self) -> None:
        """Predict from the sums as they are now."""


def open_head(draft: Draft) -> Head:
    """The head of the version, without the network around it.

    Raises:
        ConfigError: it cannot be repaired.
    """
    record = draft.record
    name = record["parts"]["head"]
    config: Any = build(config_types(record["parts"])["head"], record["settings"]["head"], "head")
    head = HEADS[name](config, width_read(config, BackboneInfo(**record["backbone"])))
    if not isinstance(head, Regroups):
        raise ConfigError(f"the head {name!r} of {draft.state.path} cannot let go of a class: it has no `regroup`")
    head.load(*draft.part(len(draft.tasks) - 1, "head"))
    return head


def adapted(record: Mapping[str, Any], task: Mapping[str, Any]) -> bool:
    """Whether a round moved the features; where its entry does not say so, whether it may have."""
    guess = record["parts"]["adapter"] != "none" and task["parts"].get("adapter") is not None
    return bool(task.get("adapted", guess))


def stays(record: Mapping[str, Any]) -> bool:
    """Whether the features of all rounds are those that the network computes today."""
    return not any(adapted(record, task) for task in record["tasks"][1:])


def refit(head: Sums, draft: Draft) -> bool:
    """Form the sums anew from the features of all rounds; False, and nothing is done, where some were not kept.

    Nothing is left then of pictures that are in no row any more, not even what rounding would leave of a difference.
    """
    channel = channels(draft.record)
    rounds = [(draft.rows(index), draft.features(index)) for index in range(len(draft.tasks))]
    if any(features is None for _, features in rounds):
        return False
    head.clear()
    for rows, features in rounds:
        assert features is not None
        labels = torch.tensor([channel[row["label"]] for row in rows], dtype=torch.int64)
        for split in ("train", "validation"):  # in the order in which they were learned
            chosen = torch.tensor([row["split"] == split for row in rows], dtype=torch.bool)
            if chosen.any():
                head.observe(Features(features[chosen], labels[chosen]))
    return True


def channels(record: Mapping[str, Any]) -> dict[int, int]:
    """Channel of each class by its id."""
    return {entry["id"]: index for index, entry in enumerate(record["classes"])}


def kept_features(draft: Draft, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Features [d] by sha256 of pictures, as far as rounds kept them."""
    missing, found = set(wanted), {}
    for index in range(len(draft.tasks)):
        if missing and (features := draft.features(index)) is not None:
            for row, feature in zip(draft.rows(index), features, strict=True):
                if row["sha256"] in missing:
                    found[row["sha256"]] = feature
            missing -= found.keys()
    return found


def stacked(rows: Sequence[Row], features: Mapping[str, Tensor], channel: Mapping[int, int]) -> Features:
    """Features and classes of rows, one each."""
    return Features(
        torch.stack([features[row["sha256"]] for row in rows]), torch.tensor([channel[row["label"]] for row in rows])
    )


def read_pictures(state: State, pictures: Any, progress: Progress) -> PictureStore:
    """Pictures decoded, with their hashes."""
    record = state.version.record
    return KINDS["classification"].load(as_pictures(pictures), record["image_size"], progress, skip_bad=False)


def computed(
    state: State,
    store: PictureStore,
    wanted: Iterable[str],
    device: str | torch.device | None,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Features [d] by sha256 of those pictures of a store that are wanted, from the network as it is.

    Those that a round has learned come in the precision of that round: in another they would not be what it added up.
    """
    chosen, _ = _chosen(store, wanted)
    rounds: dict[str, str | None] = dict.fromkeys(chosen)
    draft = Draft(state)
    for index, task in enumerate(draft.tasks):
        rounds |= {row["sha256"]: task.get("precision") for row in draft.rows(index) if row["sha256"] in rounds}
    found: dict[str, Tensor] = {}
    for precision in dict.fromkeys(rounds.values()):
        names, part = _chosen(store, [sha256 for sha256 in chosen if rounds[sha256] == precision])
        network, options = _opened(state.version.record, state, device, precision)
        found |= zip(names, extract(network, part, progress=progress, check=check, **options), strict=True)
    return {sha256: found[sha256] for sha256 in chosen}


def called(
    record: Mapping[str, Any],
    state: State,
    head: PooledHead,
    features: Mapping[str, Tensor],
    store: PictureStore,
    device: str | torch.device | None,
    progress: Progress,
) -> list[int]:
    """Channels by which pictures are called, in the order of their features, by a record with this head."""
    if not ADAPTERS[record["parts"]["adapter"]].calibrates:
        return head.logits(torch.stack(list(features.values()))).argmax(1).tolist()
    network, options = _opened(record, state, device)
    network.head.load(*head.state())
    _, part = _chosen(store, features)
    return run_pass(part, network.predict, what="predictions", progress=progress, **options).argmax(1).tolist()


def _chosen(store: PictureStore, wanted: Iterable[str]) -> tuple[list[str], PictureStore]:
    """Those of the wanted pictures that a store has, once each and in their order."""
    place = {sha256: index for index, sha256 in enumerate(store.sha256)}
    chosen = [sha256 for sha256 in dict.fromkeys(wanted) if sha256 in place]
    return chosen, store.subset(place[sha256] for sha256 in chosen)


def _opened(
    record: Mapping[str, Any], state: State, device: str | torch.device | None, precision: str | None = None
) -> tuple[Network, dict[str, Any]]:
    """A version's network, by default in the precision that it predicts in here, and how pictures go through it."""
    config, device = training_config(record), resolve_device(device)
    network, _ = assemble(record, state, device, precision or resolve_precision(config.precision, device))
    return network, {"image_size": record["image_size"], "batch_size": max(config.batch_size, _SMALLEST_BATCH)}


def regrouped(snapshot: Snapshot, groups: Groups, names: Mapping[str, str]) -> Snapshot:
    """What an objective keeps of the network's parameters, for a head whose classes have been regrouped.

    Of rows of the classifier those of each group's first class stay. ``names`` says what each parameter of the head
    was called and is called now; what is kept of those that are gone goes too.
    """
    tensors, meta = snapshot
    left: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kind, dot, parameter = name.partition(".")
        if not parameter.startswith("head."):
            left[name] = tensor
        elif parameter in names:
            rows = [group[0] for group in groups if group[0] < len(tensor)]
            one_a_class = parameter in ("head.classifier.weight", "head.classifier.bias")
            left[f"{kind}{dot}{names[parameter]}"] = tensor[rows] if one_a_class else tensor
    if isinstance(known := meta.get("classes"), int):
        meta = {**meta, "classes": sum(group[0] < known for group in groups)}
    return left, meta


def parameter_names(head: Head, change: Callable[[], None]) -> dict[str, str]:
    """Names of the head's parameters in the network, before ``change`` and after it."""
    before = dict(head.named_parameters())
    change()
    after = {id(parameter): name for name, parameter in head.named_parameters()}
    there = dict(head.named_parameters())
    names = {name: after.get(id(parameter)) for name, parameter in before.items()}
    # The classifier's rows are in new parameters of the old names.
    names |= {name: name for name in before if name.startswith("classifier.") and name in there}
    return {f"head.{old}": f"head.{new}" for old, new in names.items() if new is not None}
