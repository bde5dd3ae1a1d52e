"""Multiply-accumulates, counted by torch while something runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


@dataclass
class Operations:
    """Attributes: gmacs: multiply-accumulates in units of 1e9, once the counting is over."""

    gmacs: float = 0.0


@contextmanager
def counted() -> Iterator[Operations]:
    """Count the products of matrices and convolutions that run inside, backward passes among them.

    >>> with counted() as operations:
    ...     _ = torch.ones(10, 20) @ torch.ones(20, 50)
    >>> operations.gmacs
    1e-05
    """
    found = Operations()
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        yield found
    found.gmacs = counter.get_total_flops() / 2e9  # a multiply-accumulate is counted as two operations


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# torch's counter knows the fused attention of GPUs alone.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
