"""Multiply-accumulates, counted by torch while something runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper


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
    counter = _Counter()
    try:
        with counter:
            yield found
    finally:
        found.gmacs = counter.flops / 2e9  # a multiply-accumulate is counted as two operations


class _Counter(TorchDispatchMode):
    """torch's formulas without its ``FlopCounterMode``, whose bookkeeping by module takes longer than small steps.

    Composite operations, which arrive whole where no gradients are possible (inference mode), are taken apart first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = _ON_PROCESSORS.get(func.overloadpacket) or flop_registry.get(func.overloadpacket)
        if formula is None and _composite(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


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


@cache
def _composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# torch knows the fused attention of GPUs alone.
_ON_PROCESSORS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
}
