"""What a first round declares to keep, by hand for one recipe of each kind."""

from __future__ import annotations

import torch

from sapwood.costs import declared_bytes, stored_bytes
from sapwood.methods import find_method

WIDTH, DEPTH = 384, 12  # of the ViT-S/14 that stands for all
LORA = DEPTH * 2 * 2 * WIDTH * 16  # rank 16 on q and v


def test_stored_bytes() -> None:
    files = {"a": {"x": torch.zeros(3, 4), "y": torch.zeros(2, dtype=torch.int64)}, "b": {}}
    assert stored_bytes(files) == 3 * 4 * 4 + 2 * 8


def test_lora_and_a_linear_head() -> None:
    known = 8 * (10 * (WIDTH + 1) + WIDTH * (WIDTH + 1) // 2)  # sums, counts and Gram matrix of the features
    assert declared_bytes(find_method("seq-lora"), 10) == 4 * (LORA + 10 * (WIDTH + 1)) + known


def test_lora_and_a_dense_head() -> None:
    dense = WIDTH * (WIDTH + 1) + 21 * (WIDTH + 1)
    assert declared_bytes(find_method("clora+mib"), 21) == 4 * (LORA + dense)
    assert declared_bytes(find_method("frozen+mib"), 21) == 4 * dense


def test_anchors_and_their_weights_are_kept_too() -> None:
    trained = LORA + WIDTH * (WIDTH + 1) + 21 * (WIDTH + 1)
    assert declared_bytes(find_method("lora+ewc", kind="segmentation"), 21) == 3 * 4 * trained


def test_sums_over_several_blocks() -> None:
    width = 4 * WIDTH  # classifier, solution and cross term a class; Gram matrix and counts
    rows = 10 * (4 * (width + 1) + 4 * width + 8 * width + 8)
    assert declared_bytes(find_method("ridge-4"), 10) == rows + 8 * width * (width + 1) // 2
