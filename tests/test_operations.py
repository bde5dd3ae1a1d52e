"""What passes over pictures take, against what is counted by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sapwood.backbones import create_backbone
from sapwood.backbones.base import height_width
from sapwood.learner import Learner
from sapwood.operations import Tally, counted

WIDTH, BLOCKS, TOKENS = 32, 2, 5  # of random:dinov2-tiny at 28 pixels
PICTURES = 12
ATTENTION = {  # on processors, which the reference does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}


def batches(*counts: int) -> Iterator[Any]:
    return (SimpleNamespace(targets=torch.zeros(count)) for count in counts)


def use(batch: Any) -> None:
    torch.ones(len(batch.targets), 3) @ torch.ones(3, 7)


def test_a_tally_counts_what_was_asked_for() -> None:
    tally = Tally()
    for batch in tally.over(batches(4, 4, 1)):
        use(batch)
    assert tally.gmacs == pytest.approx(9 * 21e-9)
    for count, pictures in ((1, 2), (2, 4)):
        tally = Tally()
        for batch in islice(tally.over(batches(2, 2, 2)), count):
            use(batch)
        assert tally.gmacs == pytest.approx(pictures * 21e-9)
    assert list(tally.over(batches())) == []


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("family", ["dinov2", "clip", "mit", "resnet", "sam"])
def test_forward_and_backward_are_counted_as_torch_counts_them(
    family: str, device: str, mode: Callable[[], Any]
) -> None:
    backbone = create_backbone(f"random:{family}-tiny").to(device)
    backbone.requires_grad_(True)
    height, width = height_width(backbone.info.image_size)
    pixels = torch.zeros(2, 3, height, width, device=device)

    def step() -> None:
        loss = backbone(pixels).patches.square().sum()
        if loss.requires_grad:
            loss.backward()

    backbone.train()
    with mode(), counted() as operations:
        step()
    with mode(), FlopCounterMode(display=False, custom_mapping=ATTENTION) as reference:
        step()
    assert operations.gmacs > 0
    assert operations.gmacs == pytest.approx(reference.get_total_flops() / 2e9)


def test_a_pass_that_fails_leaves_no_counter_behind() -> None:
    def fail() -> None:
        for _ in Tally().over(batches(2)):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert _get_current_dispatch_mode() is None


@pytest.fixture
def taught(picture_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[dict[str, Any], float]]:
    """What a round of twelve pictures recorded, and the GMACs of one picture through the bare backbone."""
    folder = picture_folder(["ant", "bee"], PICTURES // 2)
    training = {"epochs": 1, "batch_size": 8, "precision": "fp32", "validation": 0.0}

    def learn(method: str, **settings: Any) -> tuple[dict[str, Any], float]:
        path = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}"
        learner = Learner.create(
            path, backbone="random:dinov2-tiny", method=method, image_size=28, settings={**settings}
        ).learn(folder, training=training)
        network = learner.network
        with torch.no_grad(), network.bare(), counted() as operations:
            network.backbone(network.pixels(torch.zeros(1, 28, 28, 3, dtype=torch.uint8)))
        return learner.record["tasks"][0], operations.gmacs

    return learn


def test_features_of_a_frozen_backbone_are_all_that_a_prototype_takes(taught: Callable[..., Any]) -> None:
    task, bare = taught("ncm")
    assert task["train_gmacs"] == task["pass_gmacs"] == pytest.approx(PICTURES * bare)


def test_inflora_looks_at_the_layers_before_and_after_the_steps(taught: Callable[..., Any]) -> None:
    task, bare = taught("inflora", adapter={"rank": 3})
    moments = BLOCKS * TOKENS * WIDTH * WIDTH / 1e9
    adapter = BLOCKS * TOKENS * 16 * 3 * WIDTH / 1e9  # down once, up for k and v, at sixteen columns
    # Before: the bare backbone. After: with the adapter beside it, then folded, for the head's known classes.
    assert task["pass_gmacs"] == pytest.approx(PICTURES * (3 * bare + 2 * moments + adapter))
    steps = task["train_gmacs"] - task["pass_gmacs"]
    assert 1.3 * PICTURES * bare < steps < 3.5 * 16 * bare


def test_fisher_passes_count_for_the_pictures_that_they_take(taught: Callable[..., Any]) -> None:
    found = {}
    for pictures in (2, 4):
        settings = {"fisher_pictures": pictures, "fisher_batch": 1}
        task, bare = taught("lora+ewc", adapter={"rank": 2}, objective=settings)
        found[pictures] = task["pass_gmacs"]
    each = (found[4] - found[2]) / 2
    assert 1.5 * bare < each < 3.5 * bare  # forward, and gradients of inputs and factors
    features = found[2] - 2 * each
    assert PICTURES * bare < features < 1.1 * PICTURES * bare  # the adapter beside the weights
