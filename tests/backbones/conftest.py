"""Tiny encoders whose every number counts, and what their projections read and give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sapwood.backbones import Backbone, create_backbone

Drawn = Callable[..., Backbone]
Recorded = Callable[[Backbone, Tensor], tuple[dict[str, Tensor], dict[str, Tensor]]]


@pytest.fixture
def drawn() -> Drawn:
    """Opens a backbone by name and size and draws all its parameters: zero positions or biases would hide faults."""

    def make(name: str, image_size: int | None = None) -> Backbone:
        backbone = create_backbone(name, image_size)
        fill(backbone)
        return backbone

    return make


def fill(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(11)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.3, generator=generator)


@pytest.fixture
def recorded() -> Recorded:
    """Inputs and outputs of the module of every site, by site name, in one forward."""

    def record(backbone: Backbone, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
            def hook(_module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
                inputs[name], outputs[name] = args[0], output

            return hook

        hooks = [backbone.get_submodule(site.module).register_forward_hook(keep(site.name)) for site in backbone.sites]
        with torch.no_grad():
            backbone(images)
        for hook in hooks:
            hook.remove()
        return inputs, outputs

    return record
