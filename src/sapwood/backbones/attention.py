"""Which way of computing attention trains fastest here: measured once a shape, and remembered in the cache folder."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.backbones.base import Attention, Backbone, height_width
from sapwood.cache import cache_dir

_FILE = "attention.json"
_TURNS, _SMALLEST_GAIN = 5, 1.1
_MOST_NUMBERS = 4_000_000  # in the attention maps of what is measured


def fastest_attention(backbone: Backbone, batch_size: int) -> Attention:
    """``sdpa`` (torch's fused attention) unless plain products train a tenth faster with this many pictures a batch.

    Only forward and backward of one block's attention are measured, on random numbers of the backbone's dtype and
    device. Backbones whose blocks differ in shape stay with the fused one.
    """
    info = backbone.info
    if not backbone.uniform:
        return "sdpa"
    height, width = height_width(info.image_size)
    tokens = info.prefix_tokens + (height // info.patch) * (width // info.patch)
    shape = (info.heads, tokens, info.dim // info.heads)
    weight = next(backbone.parameters())
    key = f"{torch.__version__} {_machine(weight.device)} {weight.dtype} {batch_size}x{'x'.join(map(str, shape))}"
    known = _read()
    if known.get(key) not in ("sdpa", "eager"):
        known[key] = _measured(batch_size, *shape, like=weight)
        _write(known)
    return "eager" if known[key] == "eager" else "sdpa"


@contextmanager
def attending(backbone: Backbone, how: Attention) -> Iterator[None]:
    """Compute attention so inside; outside of it, where nothing flows back, the fused way is the fastest everywhere."""
    if how == "sdpa":
        yield
        return
    backbone.set_attention(how)
    try:
        yield
    finally:
        backbone.set_attention("sdpa")


def _measured(batch: int, heads: int, tokens: int, width: int, *, like: Tensor) -> Attention:
    batch = max(1, min(batch, _MOST_NUMBERS // (heads * tokens * tokens)))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, batch, heads, tokens, width, generator=generator).to(like.device, like.dtype)
    parts = tuple(part.requires_grad_() for part in drawn)

    def seconds(way: Callable[..., Tensor]) -> float:
        began = time.perf_counter()
        torch.autograd.grad(way(*parts).sum(), parts)
        if like.device.type == "cuda":
            torch.cuda.synchronize(like.device)
        return time.perf_counter() - began

    turns = [(seconds(_plain), seconds(F.scaled_dot_product_attention)) for _ in range(_TURNS + 1)][1:]
    plain, fused = (min(times) for times in zip(*turns, strict=True))
    return "eager" if plain * _SMALLEST_GAIN < fused else "sdpa"


def _plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (queries * queries.shape[-1] ** -0.5 @ keys.transpose(-2, -1)).softmax(-1) @ values


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} {torch.get_num_threads()} threads"


def _read() -> dict[str, str]:
    with suppress(OSError, ValueError):
        found = json.loads((cache_dir() / _FILE).read_text("utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _write(known: dict[str, str]) -> None:
    with suppress(OSError):  # it is measured again then
        folder = cache_dir()
        handle, name = tempfile.mkstemp(dir=folder, prefix=_FILE)
        with open(handle, "w", encoding="utf-8") as stream:
            json.dump(known, stream, indent=1)
        os.replace(name, folder / _FILE)
