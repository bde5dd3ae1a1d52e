"""Every recipe leaves for other libraries, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sapwood.errors import ConfigError, NotMergeable
from sapwood.export import export
from sapwood.learner import Learner
from sapwood.methods import METHODS

from .exports import check_nothing_left, opened_answers, pixel_values, unmerged
from .helpers import (
    SIZES,
    TINY,
    Rounds,
    every_method,
)
from .peft_exports import adapted, card_scores, own_tokens, stock

Give = Callable[[str, str], Learner]
GiveRounds = Callable[[str], Rounds]


@every_method
def test_leaves_as_a_folder_of_transformers(
    method: str, kind: str, learned: Give, rounds: GiveRounds, tmp_path: Path
) -> None:
    learner, out = learned(method, kind), tmp_path / "out"
    if not learner.network.adapter.mergeable:
        with pytest.raises(NotMergeable, match=r"--task N \(1\.\.2\), or everything with --to onnx"):
            export(learner.state.path, out, "merged")
        assert not out.exists()
        return
    made = export(learner.state.path, out, "merged")
    assert made.max_difference <= 1e-5
    pixels = pixel_values(rounds(kind).other, SIZES[kind])
    torch.testing.assert_close(opened_answers(out, pixels), unmerged(learner, pixels), atol=1e-5, rtol=1e-5)
    check_nothing_left(out, TINY, "dinov2.", learner.classes_)


@every_method
def test_leaves_as_an_adapter_for_peft(
    method: str, kind: str, learned: Give, rounds: GiveRounds, tmp_path: Path
) -> None:
    learner, out = learned(method, kind), tmp_path / "out"
    adapter = METHODS[method].adapter
    refusals = {
        "none": (ConfigError, "the adapter none has not changed the backbone.* --to merged"),
        "full": (ConfigError, r"are no layer's weight .* cannot hold that; take --to merged"),
    }
    if not learner.network.adapter.mergeable or adapter in refusals:
        error, words = refusals.get(adapter, (NotMergeable, r"--task N \(1\.\.2\), or everything with --to onnx"))
        with pytest.raises(error, match=words):
            export(learner.state.path, out, "peft")
        assert not out.exists()
        return
    assert export(learner.state.path, out, "peft").max_difference <= 1e-5
    pixels, model = pixel_values(rounds(kind).other, SIZES[kind]), stock(TINY)
    with torch.no_grad():
        before = model(pixel_values=pixels).last_hidden_state
        loaded = adapted(model, out)
        tokens = loaded(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(tokens, own_tokens(learner, pixels), atol=1e-5, rtol=0)
    assert (tokens - before).abs().max() > 1e-3  # it does something
    scores = unmerged(learner, pixels).softmax(1)
    torch.testing.assert_close(card_scores(loaded, out, pixels), scores, atol=1e-5, rtol=0)
