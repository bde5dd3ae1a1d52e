"""A frozen backbone in pieces: during steps each process holds a share of every block's weights (FSDP).

accelerate's own configuration asks for it (``accelerate launch --use_fsdp …``). A block's weights are gathered while it
computes and let go again. What is trained (adapter, head) is small and stays whole in every process, as do embeddings
and norms outside the blocks; its gradients are added up as without. Outside steps all weights are whole, so that a
process may compute alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from sapwood.errors import ConfigError
from sapwood.world import device, size, together


def asked() -> bool:
    """Whether there are several processes and accelerate's configuration shards."""
    return size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


def check_frozen(backbone: nn.Module) -> None:
    """Refuse to shard what is trained.

    Raises:
        ConfigError: the backbone's own weights train.
    """
    if asked() and any(parameter.requires_grad for parameter in backbone.parameters()):
        raise ConfigError(
            "sharding (ACCELERATE_USE_FSDP) is for a frozen backbone, and this method trains its weights; "
            "start without it, or take a method with an adapter"
        )


@contextmanager
def in_pieces(backbone: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Shards the modules at the paths ``blocks`` inside; all processes must compute the same steps there.

    After an exception the weights stay in pieces: the round is lost, and its network with it.
    """
    if not asked():
        yield
        return
    modules = _sharded(backbone, blocks)
    with together():
        _spread(modules)
    yield
    with together():
        _gather(modules)


@contextmanager
def whole(backbone: nn.Module) -> Iterator[None]:
    """Inside ``in_pieces``: all weights are whole for a while, and processes may compute what they like."""
    blocks = _found(backbone)
    with together():
        _gather(blocks)
    yield
    with together():
        _spread(blocks)


def _found(backbone: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [each for each in backbone.modules() if isinstance(each, FSDPModule)]


def _sharded(backbone: nn.Module, blocks: Sequence[str]) -> list[Any]:
    """The blocks, which torch's wrapper turns in place into modules that can be sharded."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if found := _found(backbone):
        return found
    FullyShardedDataParallelPlugin()  # reads the configuration, and refuses one that is none
    mesh = init_device_mesh(device().type, (size(),))
    return [fully_shard(backbone.get_submodule(path), mesh=mesh) for path in blocks]


def _spread(blocks: list[Any]) -> None:
    for block in blocks:
        block.set_reshard_after_forward(True)
        block.set_reshard_after_backward(True)
        block.reshard()


def _gather(blocks: list[Any]) -> None:
    for block in blocks:
        block.set_reshard_after_forward(False)
        block.set_reshard_after_backward(False)
        block.unshard()
