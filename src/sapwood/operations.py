"""Multiply-accumulates, counted by torch while something runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    try:
        with counter:
            yield found
    finally:
        found.gmacs = counter.get_total_flops() / 2e9  # a multiply-accumulate is counted as two operations


@dataclass
class Tally:
    """What passes over pictures take: the first batch of each is counted, the others by their number of pictures.

    Attributes:
        gmacs: multiply-accumulates in units of 1e9 so far.
    """

    gmacs: float = 0.0

    def over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, each with ``targets``; what the caller does with one before asking for the next is counted.

        >>> from types import SimpleNamespace
        >>> tally = Tally()
        >>> for batch in tally.over(SimpleNamespace(targets=torch.zeros(count)) for count in (4, 4, 8)):
        ...     _ = torch.ones(len(batch.targets), 20) @ torch.ones(20, 50)
        >>> tally.gmacs
        1.6e-05
        """
        first, pictures, operations = 1, 0, None
        try:
            for batch in batches:
                pictures += len(batch.targets)
                if operations is None:
                    first = pictures
                    with counted() as operations:
                        yield batch
                else:
                    yield batch
        finally:  # also where the caller has enough and asks for no more
            if operations is not None:
                self.gmacs += operations.gmacs * pictures / first


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# torch's counter knows the fused attention of GPUs alone.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
