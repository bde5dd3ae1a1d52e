"""The network that leaves: merged, stripped of its adapter, with the scores that ``predict`` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sapwood.adapted import Adapted
from sapwood.data.transforms import eval_view, normalise
from sapwood.export import Plain
from sapwood.export.head_file import affine, head_file
from sapwood.export.views import made_up
from sapwood.learner import Learner

Taught = Callable[..., Path]
MakePlain = Callable[..., Plain]


def apply_lines(lines: tuple[str, ...], head: dict[str, Tensor], **given: Tensor) -> Tensor:
    """What statements of a head file return."""
    body = "\n".join(f"    {line}" for line in lines)
    scope: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
    exec(f"def apply(head, {', '.join(given)}):\n{body}", scope)
    found: Tensor = scope["apply"](head, **given)
    return found


@pytest.mark.parametrize("method", ["seq-lora", "ncm", "color"])
def test_softmax_is_the_score_of_predict(
    method: str, plain: MakePlain, taught: Taught, rounds: Callable[[str], tuple[Path, ...]]
) -> None:
    leaving = plain(method)
    info = leaving.backbone.info
    for answer in Learner.open(taught(method), device="cpu").predict(rounds("classification")[2], top=4):
        picture = np.asarray(Image.open(answer.path).convert("RGB").resize((35, 35), Image.Resampling.BICUBIC))
        pixels = normalise(torch.from_numpy(eval_view(picture, 28)[None]), info.mean, info.std)
        scores = dict(zip(leaving.classes, leaving(pixels).softmax(1)[0].tolist(), strict=True))
        assert scores == pytest.approx(dict(answer.top), abs=5e-3)


def test_nothing_of_an_adapter_is_left(plain: MakePlain) -> None:
    leaving = plain("seq-lora")
    assert leaving.merged
    assert not any(isinstance(module, Adapted) for module in leaving.backbone.modules())
    assert not any(parameter.requires_grad for parameter in leaving.parameters())
    held = plain("color")
    assert not held.merged
    assert any(isinstance(module, Adapted) for module in held.backbone.modules())


@pytest.mark.parametrize("method", ["seq-lora", "seq-lora+ridge", "ranpac", "ncm"])
def test_the_head_file_divides_by_the_temperature(method: str, plain: MakePlain) -> None:
    leaving = plain(method)
    leaving.head.temperature = 0.37
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    head: Any = leaving.head
    expected = head.logits(features) / 0.37
    found = head_file(leaving)
    given = apply_lines(found.lines, found.tensors, features=features)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    assert (affine(leaving) is None) == (method in ("ranpac", "ncm"))


@pytest.mark.parametrize("method", ["clora+ssul", "clora+rcil", "clora+dkd"])
def test_the_dense_head_file(method: str, plain: MakePlain) -> None:
    """Stems with normalisation and an unknown class; parallel branches; an auxiliary background."""
    leaving = plain(method, "segmentation")
    leaving.head.temperature = 2.0
    random = torch.Generator().manual_seed(0)
    for name, value in leaving.head.named_buffers():  # statistics that fold to something else than ones and zeros
        if name.endswith(("mean", "var")):
            value.copy_(torch.rand(value.shape, generator=random) + 0.5)
    maps = torch.randn(2, 32, 4, 6, generator=random)
    head: Any = leaving.head
    with torch.no_grad():
        expected = head._classify(head._decode(maps)) / 2.0
        found = head_file(leaving)
        given = apply_lines(found.lines, found.tensors, maps=maps)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


def test_an_aspp_decoder_is_written_down_too() -> None:
    from sapwood.export.dense_file import dense_file
    from sapwood.heads.dense import DenseConfig, DenseHead

    head = DenseHead(DenseConfig(decoder="aspp", background="unknown", stem="per_task"), dim=8)
    random = torch.Generator().manual_seed(0)
    head.grow(3, random)
    head.grow(2, random)
    for value in head.buffers():
        value.copy_(torch.rand(value.shape, generator=random) + 0.5)
    maps = torch.randn(1, 8, 5, 7, generator=random)
    with torch.no_grad():
        expected = head._classify(head._decode(maps))
        tensors, lines, _ = dense_file(head, None)
        torch.testing.assert_close(apply_lines(lines, tensors, maps=maps), expected, atol=1e-4, rtol=1e-4)
        tensors, lines, _ = dense_file(head, (0, 3, 4))  # one round's classes, and what is unknown
        torch.testing.assert_close(
            apply_lines(lines, tensors, maps=maps), expected[:, [0, 3, 4, 5]], atol=1e-4, rtol=1e-4
        )


def test_made_up_pictures_are_always_the_same() -> None:
    views = made_up((28, 42))
    assert views.shape == (8, 28, 42, 3)
    assert views.dtype == torch.uint8
    assert torch.equal(views, made_up((28, 42)))
    assert views.float().std() > 30
    assert len({bytes(view.numpy()) for view in views}) == 8
