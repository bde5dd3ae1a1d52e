"""Training from hidden states on disk: the same numbers as from pictures, whatever happens to the disk."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.data.loader import Batch, Views
from sapwood.data.pictures import Pictures
from sapwood.data.store import PictureStore
from sapwood.errors import Interrupted, SapwoodError
from sapwood.hidden_cache import HiddenCache
from sapwood.kinds import KINDS
from sapwood.network import Network, Teacher
from sapwood.objectives import OBJECTIVES
from sapwood.prefixes import HiddenBatch
from sapwood.progress import Progress
from sapwood.rounds import learn_round
from sapwood.settings import TrainingConfig
from sapwood.task import Task
from sapwood.training import Stop

from .helpers import COUNT, SIDE, Heard, feed, network, pictures

Whole = Callable[[TrainingConfig], dict[str, Tensor]]

CONFIG = TrainingConfig(epochs=2, batch_size=8, precision="fp32", lr=2e-3, augment=False, cache_prefix=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Kept:
    """Checkpoints in memory, as independent copies."""

    def __init__(self) -> None:
        self.found: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def save(self, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        copied = {**meta, "position": dict(meta["position"]), "log": [dict(row) for row in meta["log"]]}
        self.found = ({name: tensor.clone() for name, tensor in tensors.items()}, copied)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.found

    def keep_rows(self, what: str, first: int, rows: Tensor) -> None:
        """Nothing is kept."""

    def kept_rows(self, what: str) -> None:
        """Nothing."""


def close(model: Network, others: Mapping[str, Tensor]) -> bool:
    return all(
        torch.allclose(parameter, others[name], rtol=1e-4, atol=2e-5) for name, parameter in model.trainable().items()
    )


def trained(model: Network) -> dict[str, Tensor]:
    """The parameters, drawn at random: at first an adapter changes nothing."""
    model.head.grow(2, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable().values():
        parameter.data.normal_(std=0.3, generator=generator)
    return dict(model.trainable())


@pytest.mark.parametrize(("turns", "workers"), [(1, 0), (2, 0), (2, 2)])
def test_batches_say_what_their_pictures_say(turns: int, workers: int) -> None:
    model = network()
    trained(model)
    teacher = Teacher(model)
    for name, parameter in trained(model).items():
        parameter.data.mul_(2 if name.startswith("head.") else 1)
    kept = feed(model, pictures(), turns=turns, workers=workers, balanced=True)
    kept.fill(heard := Heard())
    assert heard.done == {"blocks 0-0": COUNT * turns}
    fresh = feed(model, pictures(), turns=turns, balanced=True)
    shown = []
    for epoch in range(3):
        pairs = list(zip(kept.batches(epoch, 1), fresh.batches(epoch, 1), strict=True))
        assert len(pairs) == 4
        for mine, plain in pairs:
            assert isinstance(mine, HiddenBatch)
            assert isinstance(plain, Batch)
            assert torch.equal(mine.targets, plain.targets)
            assert torch.equal(mine.indices, plain.indices)
            for one, two in zip(kept.forward(model, teacher, mine), fresh.forward(model, teacher, plain), strict=True):
                assert one is not None
                assert two is not None
                torch.testing.assert_close(one.logits, two.logits, rtol=1e-5, atol=1e-5)
        shown.append(
            {int(index): row for mine, _ in pairs for index, row in zip(mine.indices, mine.hidden, strict=True)}
        )
    common = sorted(set(shown[0]) & set(shown[1]) & set(shown[2]))
    assert common
    for index in common:
        assert torch.equal(shown[0][index], shown[2 if turns == 2 else 1][index])
        assert torch.equal(shown[0][index], shown[1][index]) is (turns == 1)


def test_nothing_stale_is_served(tmp_path: Path) -> None:
    def computed(model: Network, store: PictureStore, **options: Any) -> int:
        made = feed(model, store, **options)
        made.fill(heard := Heard())
        return heard.done.get("blocks 0-0", 0)

    model, augmented = network(), Views(SIDE, augment=True, seed=1)
    assert computed(model, pictures()) == COUNT
    assert computed(network(), pictures()) == 0  # another run finds everything
    one_other = [*pictures().pictures][:-1] + [*pictures(seed=1).pictures][-1:]
    # 8 views are computed, since 40 pictures make groups of 32 and of 8; one of them is new
    assert computed(model, PictureStore(Pictures(one_other), 35)) == 8
    assert computed(model, PictureStore(pictures().pictures, 30)) == COUNT  # decoded at another size
    assert computed(model, pictures(), views=replace(augmented, image_size=14)) == COUNT
    assert computed(model, pictures(), views=augmented, turns=2) == 2 * COUNT
    assert computed(model, pictures(), views=augmented, turns=3) == COUNT
    assert computed(model, pictures(), views=replace(augmented, seed=2), turns=2) == 2 * COUNT
    assert computed(model, pictures(), views=replace(augmented, task=1), turns=2) == 2 * COUNT
    other = network()
    with torch.no_grad():
        next(other.backbone.parameters()).mul_(2)
    other.backbone.info = replace(other.backbone.info, sha256="ab" * 32)
    assert computed(other, pictures()) == COUNT
    model.set_precision("bf16")
    assert computed(model, pictures()) == COUNT


def test_a_changed_transform_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    feed(model, pictures()).fill(Progress())
    monkeypatch.setattr("sapwood.prefixes.eval_view", lambda picture, size: picture[:size, :size])
    feed(model, pictures()).fill(heard := Heard())
    assert heard.done == {"blocks 0-0": COUNT}


def test_damaged_and_removed_files_are_computed_anew(folder: Path) -> None:
    kept = feed(network(), pictures())
    kept.fill(Progress())
    before = list(kept.batches(0, 0))
    files = sorted(path for path in (folder / "hidden").rglob("*") if path.is_file())
    for path in files[:3]:
        path.unlink()
    for path in files[3:6]:
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    after = list(kept.batches(0, 0))
    assert sum(len(batch.missing) for batch in after) == 6
    for one, two in zip(before, after, strict=True):
        torch.testing.assert_close(one.hidden, two.hidden, rtol=1e-5, atol=1e-6)
    assert not any(batch.missing for batch in kept.batches(0, 0))


def test_with_a_piece_of_the_backbone_one_process_computes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = feed(network(), pictures())
    kept.fill(Progress())
    path = next(path for path in (folder / "hidden").rglob("*") if path.is_file())
    path.write_bytes(bytes(path.stat().st_size))
    with monkeypatch.context() as patch:
        patch.setattr("sapwood.prefixes.asked", lambda: True)
        with pytest.raises(SapwoodError, match=r"hidden states of 1 pictures are not, or no longer, in .*/hidden/"):
            list(kept.batches(0, 0))
    kept.fill(heard := Heard())
    assert heard.notes[0].startswith(f"hidden states of {COUNT} views ({COUNT - 1} were there)")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The parameters after rounds that nothing disturbed."""
    found: dict[TrainingConfig, dict[str, Tensor]] = {}

    def undisturbed(config: TrainingConfig) -> dict[str, Tensor]:
        if config not in found:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SAPWOOD_CACHE", str(tmp_path_factory.mktemp("undisturbed")))
                found[config] = dict(learn(config)[0].trainable())
        return found[config]

    return undisturbed


def learn(config: TrainingConfig, kept: Kept | None = None, what: str = "", after: int = 0) -> tuple[Network, Heard]:
    """Two rounds; the second, which has a teacher, may be stopped."""
    model, objective = network(), OBJECTIVES["lwf"](OBJECTIVES["lwf"].Config())
    stop = Stop()
    heard = Heard(stop, what, after)
    names: tuple[str, ...] = ()
    for index, classes in enumerate(("ab", "cd")):
        data = KINDS["classification"].prepare(pictures(classes), names, index, classes, 0, 0.1, SIDE)
        progress, checkpoints = (heard, kept or Kept()) if index else (Progress(), Kept())
        learn_round(model, objective, data, config, checkpoints, progress, stop)
        names = data.names
    return model, heard


def test_training_is_that_of_the_pictures(whole: Whole) -> None:
    plain, _ = learn(replace(CONFIG, cache_prefix=0))
    assert close(plain, whole(CONFIG))


@pytest.mark.parametrize(("what", "after"), [("blocks 0-0", 1), ("training", 7)])
def test_a_stopped_round_ends_bit_for_bit(what: str, after: int, folder: Path, whole: Whole) -> None:
    config, kept = replace(CONFIG, augment=True, cache_prefix=2), Kept()
    undisturbed = whole(config)  # in a cache of its own
    with pytest.raises(Interrupted):
        learn(config, kept, what, after)
    assert len(list(folder.rglob("*"))) > 20
    again, heard = learn(config, kept)
    assert heard.done.get("blocks 0-0", 0) < 72 + 4
    for name, parameter in again.trainable().items():
        assert torch.equal(parameter, undisturbed[name]), name


@pytest.mark.parametrize("fault", ["full", "full in the middle", "little room", "forbidden"])
def test_a_full_disk_only_costs_time(fault: str, folder: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = whole(CONFIG)
    put, written = HiddenCache.put, list[str]()

    def refuse(self: HiddenCache, name: str, hidden: Tensor) -> None:
        if fault == "full in the middle" and len(written) < 33:
            written.append(name)
            return put(self, name, hidden)
        raise OSError(errno.EACCES if fault == "forbidden" else errno.ENOSPC, "Permission denied")

    if fault == "little room":
        monkeypatch.setattr(HiddenCache, "room_for", lambda self, views: False)
    else:
        monkeypatch.setattr(HiddenCache, "put", refuse)
    model, heard = learn(CONFIG)
    reason = "Permission denied" if fault == "forbidden" else "no space left"
    said = [note for note in heard.notes if note.startswith("hidden states are not kept")]
    assert len(said) == 2  # of pictures to train on, and of those held out
    assert all(reason in note and str(folder) in note for note in said)
    assert not [path for path in folder.rglob("*") if path.is_file()]  # what was written is gone again
    assert close(model, undisturbed)


def test_the_task_is_not_part_of_a_plain_view() -> None:
    model, store = network(), pictures()
    feed(model, store, Views(SIDE, augment=False, seed=1, task=0)).fill(Progress())
    feed(model, store, Views(SIDE, augment=False, seed=2, task=Task(3, "x", (), (), 0, 0).index)).fill(heard := Heard())
    assert heard.done == {}
