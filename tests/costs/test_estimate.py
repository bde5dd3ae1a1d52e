"""What a round will take, said before it begins: counted in blocks that run, and in bytes that autograd keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sapwood.adapters import ADAPTERS
from sapwood.backbones import create_backbone
from sapwood.costs import estimate, estimate_round
from sapwood.data.pictures import Pictures, as_picture
from sapwood.data.store import PictureStore
from sapwood.heads import HEADS
from sapwood.kinds import KINDS, Round
from sapwood.network import Network
from sapwood.settings import TrainingConfig

SIDE = 28
CONFIG = TrainingConfig(epochs=5, batch_size=4, precision="fp32")


def network(blocks: str, head: str = "linear") -> Network:
    backbone = create_backbone("random:dinov2-tiny", SIDE)  # of two blocks
    adapter = ADAPTERS["lora"](ADAPTERS["lora"].Config(blocks=blocks), backbone.sites, backbone.info)
    return Network(backbone, adapter, HEADS[head](HEADS[head].Config(), backbone.info.dim))


@pytest.fixture(scope="module")
def data() -> Round:
    """Of 20 pictures, 18 to train on."""
    made = [as_picture(np.full((SIDE, SIDE, 3), n, np.uint8), name=str(n), label="ab"[n % 2]) for n in range(20)]
    return KINDS["classification"].prepare(PictureStore(Pictures(made), SIDE), (), 0, "first", 0, 0.1, SIDE)


def blocks_run(model: Network, data: Round, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> float:
    """The estimate by a clock that counts blocks, one for each picture that they see."""
    ran = [0.0]

    def tick(module: object, inputs: tuple[object, ...], output: object) -> None:
        ran[0] += 4  # pictures in a measured batch

    handles = [block.register_forward_hook(tick) for block in model.backbone.get_submodule("model.encoder.layer")]
    with monkeypatch.context() as patch:
        patch.setattr(estimate.time, "perf_counter", lambda: ran[0])
        found = estimate_round(model, config, data).seconds
    for handle in handles:
        handle.remove()
    return found


def test_frozen_blocks_are_not_differentiated(data: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(blocks: str, head: str = "linear") -> float:
        return blocks_run(network(blocks, head), data, CONFIG, monkeypatch)

    assert count("all") == pytest.approx(20 * 5 * 2.2 * 2)
    assert count("-1") == pytest.approx(20 * 5 * (1 + 2.2))
    assert count("-1", "ridge") == pytest.approx(20 * 5 * (1 + 2.2) + 20 * 2)  # and a pass for its features


def test_kept_hidden_states_are_computed_once_a_view(data: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(**changes: object) -> float:
        return blocks_run(network("-1"), data, replace(CONFIG, **changes), monkeypatch)  # type: ignore[arg-type]

    later = 20 * 5 * 2.2
    assert count(cache_prefix=1) == pytest.approx(20 + later)
    assert count(cache_prefix=3) == pytest.approx(18 * 3 + 2 + later)  # what is held out has one view
    assert count(cache_prefix=9) == pytest.approx(18 * 5 + 2 + later)  # no more than epochs
    assert count(cache_prefix=3, augment=False) == pytest.approx(20 + later)


def test_frozen_blocks_keep_nothing_for_the_backward(data: Round) -> None:
    def activations(blocks: str, **changes: object) -> int:
        model, config = network(blocks), replace(CONFIG, **changes)  # type: ignore[arg-type]
        weights = sum(each.numel() * each.element_size() for each in model.parameters())
        trained = sum(each.numel() * each.element_size() for each in model.trainable().values())
        return estimate_round(model, config, data).memory - weights - 3 * trained

    assert activations("all") == 2 * activations("-1") > 0  # of two blocks
    assert activations("-1") == activations("-1", cache_prefix=1)
