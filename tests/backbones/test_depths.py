"""Heads that read several blocks: numbers found by hand, and everything else as for heads that read the last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sapwood import Learner
from sapwood.adapters import ADAPTERS
from sapwood.backbones import Backbone, create_backbone
from sapwood.backbones.families import FAMILIES
from sapwood.backbones.split import Split
from sapwood.bench import Run
from sapwood.bench.sharing import family as family_of
from sapwood.data.sources import read_data
from sapwood.depths import blocks_read, check_read, reading, width_read
from sapwood.errors import ConfigError
from sapwood.heads import HEADS
from sapwood.heads.dense import DenseConfig
from sapwood.heads.linear import LinearConfig
from sapwood.heads.ridge import RidgeConfig
from sapwood.network import Network
from sapwood.prefixes import blocks_below

TINY = "random:dinov2-tiny"


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_read_is_each_blocks_class_token_behind_the_norm(name: str, drawn: Callable[..., Backbone]) -> None:
    backbone = drawn(f"random:{name}-tiny")
    assert isinstance(backbone, Split)
    info, row = backbone.info, FAMILIES[name]
    images = torch.randn(2, 3, 2 * info.patch, 3 * info.patch, generator=torch.Generator().manual_seed(1))
    norm = backbone.model.get_submodule(row.norm)
    with torch.no_grad():
        # What enters a block is what the one before it gave; behind the last the library itself says it.
        leaves = [backbone.prefix(images, index) for index in range(1, info.depth)]
        states = backbone.model(pixel_values=images, **row.forward_options).last_hidden_state
        last = norm(states) if row.norm_of == "class_token" else states
        expected = [*(norm(hidden) for hidden in leaves), last]
        pick = (lambda hidden: hidden[:, 0]) if row.class_tokens else (lambda hidden: hidden.mean(1))
        with reading(backbone, range(info.depth)) as pooled:
            tokens = pooled(backbone(images))
        plain = backbone(images)
    assert torch.allclose(tokens.pooled, torch.cat([pick(each) for each in expected], 1), atol=1e-6)
    assert torch.equal(tokens.patches, plain.patches)
    if row.pooled == "class_token":
        assert torch.equal(tokens.pooled[:, -info.dim :], plain.pooled)


def network(reads: str, adapter: str = "none", **settings: Any) -> Network:
    """A linear head that reads these blocks of two."""
    backbone = create_backbone(TINY)
    config = LinearConfig(blocks=reads)
    parts = ADAPTERS[adapter](ADAPTERS[adapter].Config(**settings), backbone.sites, backbone.info)
    head = HEADS["linear"](config, width_read(config, backbone.info))
    head.grow(2, torch.Generator().manual_seed(0))
    head.classifier.draw_idle(torch.Generator().manual_seed(0))
    return Network(backbone, parts, head)


def test_adapters_of_every_block_that_is_read_learn_from_it() -> None:
    reads_first, reads_both = (network(reads, "lora") for reads in ("0", "all"))
    images = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for each, learning in ((reads_first, {"0"}), (reads_both, {"0", "1"})):
        for factor in each.adapter.get_submodule("down").parameters():
            torch.nn.init.ones_(factor)
        each(images).logits[:, 0].sum().backward()
        moved = {
            name.split("block")[1].strip("._")[0]
            for name, value in each.adapter.named_parameters()
            if name.startswith("up") and value.grad is not None and value.grad.abs().sum() > 0
        }
        assert moved == learning


def test_what_is_kept_of_a_prefix_ends_where_reading_begins() -> None:
    assert blocks_below(network("1", "lora", blocks="1")) == 1
    assert blocks_below(network("all", "lora", blocks="1")) == 0


def test_features_of_one_head_are_no_other_heads(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    data, memory = read_data(picture_folder(["ant", "bee"], 6)), dict[str, torch.Tensor]()
    found = {}
    for blocks in ("pooled", "all"):
        made = Learner.create(tmp_path / blocks, backbone=TINY, method="ridge", settings={"head": {"blocks": blocks}})
        learner = Learner(made.state, memory=memory)
        learner.learn(data)
        found[blocks] = learner.network.head.dim, len(memory)
    width = create_backbone(TINY).info.dim
    assert found == {"pooled": (width, 12), "all": (2 * width, 24)}


def test_blocks_that_are_not_there() -> None:
    backbone = create_backbone(TINY)
    assert blocks_read(RidgeConfig(blocks="-1,0"), backbone.info) == (0, 1)
    assert blocks_read(RidgeConfig(), backbone.info) == blocks_read(DenseConfig(), backbone.info) == ()
    with pytest.raises(ConfigError, match=r"head\.blocks: '7' is not a block of 0\.\.1; write all, 0,1 or -4:"):
        check_read(RidgeConfig(blocks="7"), backbone)
    with pytest.raises(ConfigError, match="blocks must be a text, got 3"):
        RidgeConfig(blocks=3)
    for name in ("random:mit-tiny", "random:resnet-tiny"):
        with pytest.raises(ConfigError, match=r"of a plain vision transformer.*take --set head\.blocks=pooled"):
            check_read(RidgeConfig(blocks="-1:"), create_backbone(name))


def test_a_state_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain vision transformer"):
        Learner.create(tmp_path / "state", backbone="random:mit-tiny", method="layup")
    assert not (tmp_path / "state").exists()


def test_heads_that_read_other_blocks_train_other_classifiers() -> None:
    runs = [Run("seq-lora", TINY, 0, 28, settings={"head": {"blocks": blocks}}) for blocks in ("pooled", "all")]
    first, second = (family_of(run, "classification") for run in runs)
    assert None not in (first, second)
    assert first != second
