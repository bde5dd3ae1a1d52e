"""InfLoRA: designed factors against singular vectors, and what is protected stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.adapters.base import Context, Vectors
from sapwood.adapters.inflora import InfLora, InfLoraConfig
from sapwood.backbones.base import Site
from sapwood.errors import ConfigError
from sapwood.operations import counted
from sapwood.task import Task

WIDTH, OUT = 8, 5
KEYS = ("block.0.attn", "block.1.attn")
SITES = [Site(f"block.{i}.{part}", "linear", WIDTH, OUT, key, "") for i, key in enumerate(KEYS) for part in "qkv"]


def task(index: int) -> Task:
    return Task(index, f"round {index}", (index,), (index,), index + 1, seed=5)


class Seen:
    """Statistics of given layer inputs [n, d], the same for every layer; the second layer sees them reversed."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def second_moments(self, wanted: Vectors) -> tuple[dict[str, Tensor]]:
        assert wanted == Vectors("all")
        moment = (self.x.T @ self.x / len(self.x)).float()
        return ({KEYS[0]: moment, KEYS[1]: moment.flip(0, 1)},)


def adapter(**settings: Any) -> InfLora:
    return InfLora(InfLoraConfig(**{"rank": 2, **settings}), SITES, None)


def inputs(seed: int, dims: int = WIDTH, count: int = 60) -> Tensor:
    """Rows that span ``dims`` directions, some of them taken much more than others."""
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=rng, dtype=torch.float64))[0][:dims]
    scale = torch.logspace(0.5, -0.5, dims, dtype=torch.float64)
    return (torch.randn(count, dims, generator=rng, dtype=torch.float64) * scale) @ turn


def teach(inflora: InfLora, index: int, x: Tensor) -> Tensor:
    """One round with arbitrary learned B, and A as it was designed."""
    inflora.before_task(task(index), Seen(x))
    rng = torch.Generator().manual_seed(index)
    with torch.no_grad():
        for factor in inflora.up.values():
            factor.normal_(generator=rng)
    designed = inflora.down_block_0_attn.clone()
    inflora.after_task(task(index), Seen(x))
    return designed


def site(name: str) -> Site:
    return next(each for each in SITES if each.name == name)


def test_the_first_round_takes_the_leading_directions_of_its_inputs() -> None:
    inflora, x = adapter(rank=3), inputs(0)
    inflora.before_task(task(0), Seen(x))
    right = np.linalg.svd(x.numpy())[2][:3]
    down = inflora.down_block_0_attn.double().numpy()
    assert np.allclose(np.abs(down @ right.T), np.eye(3) / 3**0.5, atol=1e-5)  # rows in order, up to sign
    assert np.allclose((down**2).sum(1), 1 / 3, atol=1e-6)  # as long as rows drawn Kaiming-uniform
    mirrored = inflora.down_block_1_attn.double().numpy() @ right[:, ::-1].T
    assert np.allclose(np.abs(mirrored), np.eye(3) / 3**0.5, atol=1e-5)


@pytest.mark.parametrize(("energy", "kind"), [(0.5, "remove"), (0.9, "retain")])
def test_a_later_round_learns_in_what_is_free(energy: float, kind: str) -> None:
    inflora = adapter(energy=energy, gpm_energy="feature")
    for index in range(2):
        teach(inflora, index, inputs(index))
    bases = inflora.bases[KEYS[0]]
    assert bases.kind == kind
    guarded = bases.vectors @ bases.vectors.T
    guarded = guarded if kind == "remove" else torch.eye(WIDTH, dtype=torch.float64) - guarded
    before = {part: inflora.dense(site(f"block.0.{part}")).double() for part in "kv"}
    x = inputs(2)
    inflora.before_task(task(2), Seen(x))
    free = WIDTH - round(guarded.trace().item())
    left = np.linalg.svd((np.eye(WIDTH) - guarded.numpy()) @ (x.T @ x).numpy())[0][:, : min(2, free)]
    down = inflora.down_block_0_attn.double().numpy()
    assert np.allclose(down.T @ down, left @ left.T / 3, atol=1e-5)
    randomise(inflora)
    for part in "kv":
        change = inflora.dense(site(f"block.0.{part}")).double() - before[part]
        assert change.abs().max() > 0.1
        assert (change @ guarded).abs().max() < 1e-6


def test_old_inputs_keep_their_outputs() -> None:
    """Three rounds whose inputs span three directions each: what the first ones gave is not touched any more."""
    inflora, seen, weights = adapter(energy=1.0), [inputs(index, dims=3) for index in range(3)], []
    for index, x in enumerate(seen):
        teach(inflora, index, x)
        weights.append(inflora.dense(site("block.0.v")).double())
    # Threshold 1 protects all but the last direction of a first round, then every one.
    last = np.linalg.svd(seen[0].numpy())[2][2]
    held = seen[0] - torch.from_numpy(np.outer(seen[0].numpy() @ last, last))
    for x, after in ((held, 0), (seen[1], 1)):
        before = x @ weights[after].T
        assert before.abs().max() > 0.1
        torch.testing.assert_close(x @ weights[2].T, before, atol=1e-5, rtol=0)
    assert (seen[2] @ (weights[2] - weights[1]).T).abs().max() > 0.1  # while the third learned something


def test_protection_follows_the_threshold_of_the_round() -> None:
    inflora = adapter(energy=0.6, final_energy=0.9, expected_tasks=3, gpm_energy="feature")
    assert [inflora.threshold(index) for index in range(5)] == pytest.approx([0.6, 0.7, 0.8, 0.9, 0.9])
    constant = adapter(energy=0.6, final_energy=0.9, gpm_energy="feature")
    assert [constant.threshold(index) for index in range(3)] == [0.6] * 3
    counts = []
    for one in (inflora, constant):
        for index in range(3):
            teach(one, index, inputs(index))
        counts.append(one.state()[0]["directions_block_0_attn"].shape[1])
    assert counts[0] > counts[1]


@pytest.mark.parametrize("energy", ["moment", "feature"])
def test_what_a_direction_weighs_is_a_setting(energy: str) -> None:
    inflora, x = adapter(energy=0.8, gpm_energy=energy), inputs(0)
    teach(inflora, 0, x)
    values = np.linalg.svd((x.T @ x).numpy())[1] ** (2 if energy == "moment" else 1)
    expected = max(1, sum(values.cumsum() / values.sum() < 0.8))
    assert inflora.state()[0]["directions_block_0_attn"].shape == (WIDTH, expected)


def randomise(inflora: InfLora) -> None:
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for factor in inflora.up.values():
            factor.normal_(generator=rng)


def test_only_the_up_factors_train_and_sites_of_one_input_share_the_other() -> None:
    inflora = adapter(targets=("q", "k", "v"), rank=3)
    assert {name for name, parameter in inflora.named_parameters() if parameter.requires_grad} == {
        f"up.block_{block}_{part}" for block in range(2) for part in "qkv"
    }
    assert {name for name, _ in inflora.named_buffers()} == {"down_block_0_attn", "down_block_1_attn"}
    assert list(inflora.persistent_parameters()) == []
    inflora.before_task(task(0), Seen(inputs(0)))
    randomise(inflora)
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    for part in "qkv":
        expected = torch.einsum("bni,ri,or->bno", x, inflora.down_block_1_attn, inflora.up[f"block_1_{part}"])
        torch.testing.assert_close(inflora(site(f"block.1.{part}"), x, Context()), expected, atol=1e-5, rtol=0)
    low = inflora(site("block.1.q"), x.bfloat16(), Context())
    assert low.dtype == torch.bfloat16


def test_a_fast_inner_width_changes_neither_values_nor_gradients_nor_what_is_kept() -> None:
    inflora = adapter(rank=3).double()
    inflora.before_task(task(0), Seen(inputs(0)))
    randomise(inflora)
    x, context = inputs(1).reshape(4, 15, WIDTH).requires_grad_(), Context()
    with counted() as operations:
        outputs = {part: inflora(site(f"block.0.{part}"), x, context) for part in "kv"}
    down, ups = inflora.down_block_0_attn, {part: inflora.up[f"block_0_{part}"] for part in "kv"}
    # At 16 columns instead of 3; k and v see the same input, and what A makes of it is computed once.
    assert operations.gmacs == pytest.approx(60 * 16 * (WIDTH + 2 * OUT) / 1e9)
    weights = {part: torch.linspace(-1, 1, 60 * OUT).reshape(4, 15, OUT).double() for part in "kv"}
    sum((outputs[part] * weights[part]).sum() for part in "kv").backward()
    for part, up in ups.items():
        torch.testing.assert_close(outputs[part], torch.einsum("bni,ri,or->bno", x, down, up), atol=1e-12, rtol=0)
        expected = torch.einsum("bno,bni,ri->or", weights[part], x, down)
        torch.testing.assert_close(up.grad, expected, atol=1e-12, rtol=0)
        assert up.shape == (OUT, 3)
    expected = sum(torch.einsum("bno,or,ri->bni", weights[part], up, down) for part, up in ups.items())
    torch.testing.assert_close(x.grad, expected, atol=1e-12, rtol=0)
    tensors = inflora.state()[0]
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(3, WIDTH), (OUT, 3)}


def test_another_input_in_the_same_forward_is_not_taken_for_the_first() -> None:
    inflora, context = adapter(), Context()
    inflora.before_task(task(0), Seen(inputs(0)))
    randomise(inflora)
    one, other = inputs(1).float(), inputs(2).float()
    inflora(site("block.0.k"), one, context)
    expected = inflora(site("block.0.v"), other, Context())
    assert torch.equal(inflora(site("block.0.v"), other, context), expected)


def test_rounds_lie_in_the_past_and_a_new_one_starts_where_they_end() -> None:
    inflora, changes = adapter(), []
    assert inflora.folded(site("block.0.k")) is None
    for index in range(3):
        designed = teach(inflora, index, inputs(index))
        tensors, meta = inflora.state()
        assert meta == {}
        assert torch.equal(tensors["down_block_0_attn"], designed)
        changes.append(tensors["up.block_0_k"].double() @ designed.double())
        assert not inflora(site("block.0.k"), torch.ones(1, WIDTH), Context()).any()
    torch.testing.assert_close(inflora.folded(site("block.0.k")).double(), sum(changes), atol=1e-5, rtol=0)
    kept = inflora.folded(site("block.0.k")).clone()
    inflora.before_task(task(3), Seen(inputs(3)))
    assert torch.equal(inflora.folded(site("block.0.k")), kept)  # the teacher shares it
    assert not inflora(site("block.0.k"), torch.ones(1, WIDTH), Context()).any()


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_opening_rebuilds_the_bases_bit_for_bit(energy: float) -> None:
    inflora, history = adapter(energy=energy, gpm_energy="feature"), []
    for index in range(4):
        teach(inflora, index, inputs(index))
        history.append(inflora.state())
    opened = adapter(energy=energy, gpm_energy="feature")
    opened.load(history)
    for key in KEYS:
        assert opened.bases[key].kind == inflora.bases[key].kind
        assert torch.equal(opened.bases[key].vectors, inflora.bases[key].vectors)
        assert 2 * opened.bases[key].vectors.shape[1] <= WIDTH
        stored = torch.cat([tensors[f"directions_{key.replace('.', '_')}"] for tensors, _ in history], 1)
        assert stored.shape[1] <= WIDTH  # in all rounds together
        torch.testing.assert_close(stored.T @ stored, torch.eye(stored.shape[1]), atol=1e-5, rtol=0)
    for each in inflora.sites:
        assert torch.equal(opened.folded(each), inflora.folded(each))
    assert torch.equal(teach(opened, 4, inputs(4)), teach(inflora, 4, inputs(4)))


def test_without_room_the_rows_are_zero_and_nothing_moves() -> None:
    inflora = adapter(energy=1.0, rank=3)
    teach(inflora, 0, inputs(0, dims=2))
    inflora.before_task(task(1), Seen(inputs(0, dims=2)))  # one direction of the two is still free
    assert inflora.down_block_0_attn.any(1).tolist() == [True, False, False]
    for index in range(1, 4):
        teach(inflora, index, inputs(index))
    inflora.before_task(task(4), Seen(inputs(4)))
    assert not inflora.down_block_0_attn.any()
    before = inflora.dense(site("block.0.k"))
    randomise(inflora)
    assert torch.equal(inflora.dense(site("block.0.k")), before)
    inflora.after_task(task(4), Seen(inputs(4)))
    wide = adapter(rank=WIDTH + 4)
    wide.before_task(task(0), Seen(inputs(0)))
    assert wide.down_block_0_attn.any(1).tolist() == [True] * WIDTH + [False] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"adapter\.rank must be >= 1, got 0"),
        ({"energy": 0.0}, r"adapter\.energy must be in \(0, 1\], got 0\.0"),
        ({"energy": 0.9, "final_energy": 0.8}, r"adapter\.final_energy must be in \[adapter\.energy, 1\], got 0\.8"),
        ({"expected_tasks": 0}, r"adapter\.expected_tasks must be >= 1 or none, got 0"),
        ({"targets": ("gate",)}, r"adapter\.targets: no projection gate"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter(**settings)
