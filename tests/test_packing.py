"""A state with its backbone beside it: it opens where the weights cannot be had from anywhere else."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.backbones import create_backbone, known_backbones
from sapwood.backbones.folder import open_folder
from sapwood.backbones.packed import save_backbone
from sapwood.costs import state_cost
from sapwood.errors import BackboneError, ConfigError, StateError
from sapwood.learner import Learner
from sapwood.packing import pack
from sapwood.state import State

Folders = Callable[..., Path]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A backbone as a folder of somebody's own."""
    save_backbone(create_backbone("random:clip-tiny"), tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def learner(tmp_path: Path, weights: Path, picture_folder: Folders) -> Learner:
    learner = Learner.create(tmp_path / "state", backbone=str(weights), method="ncm")
    learner.learn(picture_folder(["ant", "bee"], 4, name="first"), task="one")
    return learner.learn(picture_folder(["cow"], 4, name="second"), task="two")


@pytest.mark.parametrize(
    "name", [name for name in known_backbones() if name.startswith("random:") and name.endswith("-tiny")]
)
def test_every_family_is_the_same_after_it_was_kept(name: str, tmp_path: Path) -> None:
    backbone = create_backbone(name)
    save_backbone(backbone, tmp_path / "kept")
    info, found = backbone.info, open_folder(tmp_path / "kept", name=name).info
    assert (found.sha256, found.family, found.mean, found.std, found.patch, found.prefix_tokens) == (
        info.sha256,
        info.family,
        info.mean,
        info.std,
        info.patch,
        info.prefix_tokens,
    )
    assert {file.suffix for file in (tmp_path / "kept").iterdir()} == {".json", ".safetensors"}


def test_a_packed_state_needs_nothing_else(
    tmp_path: Path, learner: Learner, picture_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = learner.predict(tmp_path / "first")
    counted = state_cost(learner.state.path)
    out = tmp_path / "elsewhere" / "packed"
    done = pack(learner.state, out)
    shutil.rmtree(tmp_path / "weights")
    shutil.rmtree(learner.state.path)
    moved = tmp_path / "moved"
    out.rename(moved)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == []

    def refuse(*_: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    again = Learner.open(moved)
    assert again.state.version.id == done.version
    assert again.predict(tmp_path / "first") == told
    assert state_cost(moved) == counted
    assert [version.id for version in again.state.versions()] == [done.version]
    again.learn(picture_folder(["dog"], 4, name="third"), task="three")
    assert again.classes_ == ("ant", "bee", "cow", "dog")
    assert again.state.prune(1) == [done.version]
    assert Learner.open(moved).predict(tmp_path / "third")[0].path
    twice = pack(again.state, tmp_path / "twice")  # a pack can be packed
    assert twice.backbone_bytes == done.backbone_bytes


def test_what_is_refused_leaves_nothing(tmp_path: Path, learner: Learner) -> None:
    state = learner.state
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConfigError, match="is there already"):
        pack(state, there)
    with pytest.raises(ConfigError, match="lies inside the state"):
        pack(state, state.path / "tasks" / "packed")
    head = next(path for path in state.path.rglob("head.safetensors"))
    good = head.read_bytes()
    head.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StateError, match="is damaged"):
        pack(state, tmp_path / "packed")
    head.write_bytes(good)
    config = tmp_path / "weights" / "config.json"
    save_backbone(create_backbone("random:vit-tiny"), tmp_path / "other")
    shutil.copytree(tmp_path / "other", tmp_path / "weights", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "other")
    assert config.is_file()
    with pytest.raises(StateError, match="put the original weights back"):
        pack(state, tmp_path / "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_state_that_moves_on_is_packed_as_it_is_then(tmp_path: Path, learner: Learner) -> None:
    late = State.open(learner.state.path)
    other = State.open(learner.state.path)
    other.undo()
    other.prune(1)
    assert pack(late, tmp_path / "packed").version == other.version.id
    assert Learner.open(tmp_path / "packed").classes_ == ("ant", "bee")


def test_a_backbone_of_another_kind_cannot_be_kept(tmp_path: Path) -> None:
    from sapwood.backbones.base import Backbone

    class Other(Backbone):
        info = create_backbone("random:vit-tiny").info

        def forward(self, images):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    with pytest.raises(BackboneError, match="no model of transformers"):
        save_backbone(Other(), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
