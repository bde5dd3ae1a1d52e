"""DualLoRA between rounds: what it stores, merges, calibrates and refuses."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.adapters.base import Context
from sapwood.adapters.dual_config import DualConfig
from sapwood.errors import ConfigError, NotMergeable

from .dual_rounds import (
    ALMOST_ALL,
    BASES,
    SIZE,
    disturb,
    images,
    key_of,
    layer_at,
    learn,
    network_of,
    statistics,
    task,
)


@torch.no_grad()
def test_logits_are_calibrated_by_the_mean_ratio_over_layers() -> None:
    network = network_of(sharpness=3.0, calibration=0.7, confidence=0.0)
    adapter = network.adapter
    for index in range(3):
        learn(network, index)
    network.head.grow(4, torch.Generator().manual_seed(0))  # channel 3 is of no round
    network.head.classifier.draw_idle(torch.Generator().manual_seed(0))
    tokens, context = network.tokens(images(1, 5))
    plain = network.head(tokens)
    first, second = (context.values[f"dual.{m.input_key}"].double().numpy() for m in adapter.layers.values())
    assert np.allclose(first, [1, 0, 0], atol=1e-6)  # at the first block all pictures have one class token
    scores = np.stack([(1 + second[:, 0]) / 2, second[:, 1], second[:, 2]], 1)
    assert scores.std(0).min() > 0
    log_p = 3 * scores - np.log(np.exp(3 * scores).sum(1, keepdims=True))
    expected = plain.double().numpy() + 0.7 * np.concatenate([log_p, np.zeros((5, 1))], 1)
    assert np.allclose(network.predict(images(1, 5)), expected, atol=1e-5)
    maps = plain[:, :, None, None].repeat(1, 1, 2, 3)
    shifted = adapter.calibrate(maps, context)
    assert np.allclose(shifted, np.broadcast_to(expected[:, :, None, None], shifted.shape), atol=1e-5)
    adapter.before_task(task(3), statistics(network, images(3)))
    assert torch.equal(network.predict(images(1, 5)), plain)  # while a round is learned its pictures are its own


@BASES
def test_each_round_stores_what_it_adds_and_all_restore_the_whole(basis: str) -> None:
    network = network_of(residual_basis=basis, energy=ALMOST_ALL)
    adapter = network.adapter
    stored = []
    for index in range(3):
        learn(network, index)
        stored.append(copy.deepcopy(adapter.state()))
    assert [meta for _, meta in stored] == [{"classes": [index]} for index in range(3)]
    assert all(min(tensor.shape, default=1) <= 3 or "basis" in name for name, tensor in stored[2][0].items())
    again = network_of(residual_basis=basis, energy=ALMOST_ALL)
    again.adapter.load(stored)
    again.refold()
    for name, buffer in adapter.named_buffers():
        if not name.endswith("live"):
            assert torch.equal(again.adapter.get_buffer(name), buffer), name
    with torch.no_grad():
        one, two = (each.tokens(images(7))[0].pooled for each in (network, again))
    assert torch.equal(one, two)
    fresh, _ = network_of().adapter.state()
    assert fresh.keys() == {name for name in stored[0][0] if not name.startswith(("basis", "mean"))}


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "merges"),
    [
        ({}, False),
        ({"calibration": 0.0}, False),
        ({"residual": False}, False),
        ({"residual": False, "calibration": 0.0}, True),
        ({"gates": False, "calibration": 0.0}, True),
    ],
)
def test_it_merges_where_no_picture_is_looked_at(settings: dict[str, Any], merges: bool) -> None:
    network = network_of(**settings)
    adapter = network.adapter
    assert (adapter.mergeable, adapter.calibrates) == (merges, settings.get("calibration") != 0)
    for index in range(2):
        learn(network, index)
    network.head.grow(2, torch.Generator().manual_seed(0))
    network.head.classifier.draw_idle(torch.Generator().manual_seed(0))
    before = network.predict(images(5))
    if not merges:
        with pytest.raises(NotMergeable, match=r"adapter\.gates=false with adapter\.calibration=0 merges"):
            network.merge()
        return
    for site in adapter.sites:
        assert adapter(site, torch.zeros(1, 2, site.inputs), Context()) is None
        pairs = [tensors for tensors, _ in adapter.past]
        key = site.name.replace(".", "_")
        whole = sum(pair[f"up.{key}"] @ pair[f"down.{key}"] for pair in pairs)
        if not settings.get("gates", True):
            whole = whole + pairs[1][f"residual_up.{key}"] @ pairs[1][f"residual_down.{key}"]
        torch.testing.assert_close(adapter.dense(site), whole, atol=1e-6, rtol=0)
    network.merge()
    torch.testing.assert_close(network.predict(images(5)), before, atol=1e-6, rtol=0)
    network.unmerge()
    seen = statistics(network, images(2))
    adapter.before_task(task(2), seen)
    assert torch.equal(network.predict(images(5)), before)
    disturb(adapter, 1)
    apart = network.predict(images(5))
    network.merge()
    torch.testing.assert_close(network.predict(images(5)), apart, atol=1e-5, rtol=0)


def test_frozen_and_over_all_tokens_the_orthogonal_pair_is_inflora() -> None:
    network = network_of(residual=False, calibration=0.0, freeze_down=True, moments="all", energy=0.8)
    adapter = network.adapter
    learn(network, 0)
    _, site = layer_at(network, "block.1.k")
    held = adapter.layers[key_of(site)].basis.double()
    seen, rows = statistics(network, images(1)), []
    seen.visit(lambda key, x: rows.append(x.flatten(0, 1).double()) if key == site.input_key else None)
    x = torch.cat(rows)
    moment = x.T @ x / len(x)
    left = np.linalg.svd((moment - held @ held.T @ moment).numpy())[0][:, :3].T
    adapter.before_task(task(1), seen)
    designed = adapter.down["block_1_k"].detach().clone()
    assert np.allclose(designed.double().T @ designed.double(), left.T @ left / 3, atol=1e-4)
    assert {name.split(".")[1] for name in network.trainable() if name.startswith("adapter.")} == {"up"}
    disturb(adapter, 2)
    assert torch.equal(adapter.down["block_1_k"], designed)
    adapter.after_task(task(1), seen)
    folded = adapter.state()[0]["down.block_1_k"]
    torch.testing.assert_close(folded, designed, atol=1e-6, rtol=0)


def test_a_round_may_add_no_direction() -> None:
    """One that sees the same as before once everything is held, and one of a single picture, still work."""
    network = network_of(energy=1.0, rank=64, blocks="1")
    adapter = network.adapter
    learn(network, 0, images(0, 60))
    learn(network, 1, images(1, 60))
    memory = next(iter(adapter.layers.values()))
    width = memory.basis.shape[0]
    while memory.basis.shape[1] < width and memory.rounds < 6:
        learn(network, memory.rounds, torch.randint(0, 256, (60, SIZE, SIZE, 3), dtype=torch.uint8))
    last = memory.rounds
    learn(network, last, images(3, 1))
    learn(network, last + 1, images(3, 1))
    assert memory.basis.shape[1] <= width
    assert memory.directions(-1).shape[1] <= 1
    tensors, _ = adapter.state()
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    with torch.no_grad():
        tokens, context = network.tokens(images(4))
    assert tokens.pooled.isfinite().all()
    assert all(value.isfinite().all() for value in context.values.values())


@pytest.mark.parametrize("backbone", ["random:mit-tiny", "random:sam-tiny"])
def test_without_a_class_token_the_mean_must_be_asked_for(backbone: str) -> None:
    size = 64
    with pytest.raises(ConfigError, match=r"has no class token; use the mean .* --set adapter\.token=mean"):
        network_of(backbone, size)
    network = network_of(backbone, size, token="mean")
    for index in range(2):
        learn(network, index, images(index, 6, size))
    network.head.grow(2, torch.Generator().manual_seed(0))
    network.head.classifier.draw_idle(torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = network.predict(images(0, 3, size))
        alone = torch.cat([network.predict(image[None]) for image in images(0, 3, size)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"adapter\.rank must be >= 1, got 0"),
        ({"energy": 95.0}, r"adapter\.energy must be in \(0, 1\], got 95"),
        ({"expected_tasks": 0}, r"adapter\.expected_tasks must be >= 1 or none, got 0"),
        ({"sharpness": -1.0}, r"adapter\.sharpness must be >= 0"),
        ({"calibration": -1.0}, r"adapter\.calibration must be >= 0"),
        ({"confidence": 2.0}, r"adapter\.confidence must be in 0\.\.1, got 2"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DualConfig(**settings)
