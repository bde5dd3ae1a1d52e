"""Views: a function of their arguments, the right crop, the right scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.data.transforms import eval_view, normalise, train_view, view_key

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def test_a_view_depends_on_its_arguments_only() -> None:
    keys = {view_key(*numbers, sha) for numbers in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)) for sha in "ab"}
    assert len(keys) == 8
    assert all(0 <= key < 2**64 for key in keys)
    first = train_view(NOISE, 16, 5)
    np.random.default_rng(1).random()
    assert np.array_equal(first, train_view(NOISE.copy(), 16, 5))
    assert len({train_view(NOISE, 16, key).tobytes() for key in range(20)}) == 20


def test_a_key_means_the_same_view_for_ever() -> None:
    """Resuming relies on it: whoever changes this line breaks checkpoints in the middle of training."""
    assert view_key(0, 1, 2, "abc") == 17823393524813496221
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    assert train_view(ramp, 4, 7)[0, :, 0].tolist() == [45, 32, 19, 7]


def test_half_of_the_views_are_mirrored_and_crops_cover_the_wanted_area() -> None:
    x = np.arange(200, dtype=np.uint8)
    picture = np.stack(
        [np.broadcast_to(x, (200, 200)), np.broadcast_to(x[:, None], (200, 200)), np.zeros((200, 200), np.uint8)], 2
    )
    mirrored, areas, ratios = 0, [], []
    for key in range(400):
        view = train_view(picture, 100, key).astype(float)
        wide, tall = view[50, 99, 0] - view[50, 0, 0], view[99, 50, 1] - view[0, 50, 1]
        mirrored += wide < 0
        areas.append(abs(wide) * tall / 200**2)
        ratios.append(abs(wide) / tall)
    assert 160 < mirrored < 240
    assert 0.45 < min(areas) < 0.55
    assert 0.9 < max(areas) <= 1.0
    assert 0.7 < min(ratios) < 0.8 < 1.25 < max(ratios) < 1.4
    assert not any(
        (train_view(picture, 8, key, flip=False)[4, 7, 0] < train_view(picture, 8, key, flip=False)[4, 0, 0])
        for key in range(20)
    )


@pytest.mark.parametrize("shape", [(4, 300), (300, 4), (1, 1), (1, 50), (2, 3)])
def test_thin_and_tiny_pictures(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 77, np.uint8)
    for key in range(20):
        assert (train_view(picture, 12, key) == 77).all()
    assert (eval_view(picture, 12) == 77).all()


def test_eval_view_is_resize_then_centre_crop() -> None:
    smooth = np.asarray(Image.fromarray(NOISE[::8, ::8]).resize((60, 40), Image.Resampling.BICUBIC))
    resized = np.asarray(Image.fromarray(smooth).resize((30, 20), Image.Resampling.BICUBIC))
    assert np.abs(eval_view(smooth, 20).astype(int) - resized[:, 5:25]).max() <= 1
    assert np.array_equal(eval_view(NOISE[:40, :40], 40), NOISE[:40, :40])
    assert eval_view(NOISE, 84).shape == (84, 84, 3)


def test_views_own_their_memory() -> None:
    source = NOISE[:40, :40].copy()
    for view in (eval_view(source, 40), *(train_view(source, 40, key, scale=(1, 1), ratio=(1, 1)) for key in range(4))):
        assert view.flags.c_contiguous
        view[:] = 0
    assert np.array_equal(source, NOISE[:40, :40])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise(dtype: torch.dtype) -> None:
    images = torch.from_numpy(np.stack([NOISE, NOISE[::-1].copy()]))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    got = normalise(images, mean, std, dtype)
    expected = ((images.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()).permute(0, 3, 1, 2)
    assert got.dtype == dtype
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), expected, atol=2e-6 if dtype == torch.float32 else 0.02, rtol=0)
    assert images[0, 0, 0].tolist() == NOISE[0, 0].tolist()
