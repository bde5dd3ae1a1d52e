"""From a config to a backbone: what each architecture is called in transformers, and which class wraps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from types import MappingProxyType
from typing import Any

import torch

from sapwood.backbones.base import Backbone
from sapwood.backbones.families import FAMILIES
from sapwood.backbones.library import quiet, transformers_class
from sapwood.backbones.mit import MitBackbone
from sapwood.backbones.resnet import ResNetBackbone, temper
from sapwood.backbones.sam import SamBackbone
from sapwood.backbones.transformer import TransformersBackbone

_DRAWING = Lock()
"""The generator that transformers draws from is the process's: of two threads one waits."""


@dataclass(frozen=True)
class Architecture:
    """One kind of encoder.

    Attributes:
        config_class, model_class: names in transformers; imported only when a backbone is made.
        model_types: ``model_type`` of the ``config.json`` files that hold such an encoder.
        wrap: makes the backbone; called with the model and, as keywords, what ``SamBackbone`` takes.
        model_options: keyword arguments of the model's constructor.
        unused: beginnings and ends of tensors' names that a checkpoint may lack, since no output depends on them.
        temper: called with a model of random weights, where these need more than transformers gives them.
    """

    config_class: str
    model_class: str
    model_types: tuple[str, ...]
    wrap: Callable[..., Backbone]
    model_options: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    temper: Callable[[Any], None] | None = None


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        name: Architecture(
            row.config_class,
            row.model_class,
            row.model_types,
            partial(TransformersBackbone, family=name),
            row.model_options,
            row.unused,
        )
        for name, row in FAMILIES.items()
    }
    | {
        "sam": Architecture("SamVisionConfig", "SamVisionModel", ("sam", "sam_vision_model"), SamBackbone),
        "mit": Architecture("SegformerConfig", "SegformerModel", ("segformer",), MitBackbone),
        "resnet": Architecture(
            "ResNetConfig", "ResNetModel", ("resnet",), ResNetBackbone, unused=("num_batches_tracked",), temper=temper
        ),
    }
)


def random_backbone(name: str, family: str, config: Mapping[str, Any], seed: int = 0) -> Backbone:
    """An encoder with the random weights that transformers gives it; the control of every benchmark.

    The numbers come from ``seed`` alone; the global generator is left as it was.

    Args:
        name: kept in ``info.name``.
        family: key of ``ARCHITECTURES``.
        config: settings of its config class.
        seed: of torch's CPU generator.
    """
    row = ARCHITECTURES[family]
    # Not torch.manual_seed: it would also seed the generators of the GPUs, which the fork does not restore.
    with _DRAWING, torch.random.fork_rng(devices=[]), quiet():
        torch.default_generator.manual_seed(seed)
        model = transformers_class(row.model_class)(transformers_class(row.config_class)(**config), **row.model_options)
    if row.temper is not None:
        row.temper(model)
    return row.wrap(model, name=name, revision=f"seed {seed}", licence="none (random weights)")


def planned_backbone(name: str, family: str, config: Any, licence: str) -> Backbone:
    """An encoder on the meta device: all shapes, no weights, nothing downloaded.

    Args:
        name, licence: kept in ``info``.
        family: key of ``ARCHITECTURES``.
        config: settings of its config class, or an instance of it.
    """
    row = ARCHITECTURES[family]
    if isinstance(config, Mapping):
        config = transformers_class(row.config_class)(**config)
    with torch.device("meta"), quiet():
        model = transformers_class(row.model_class)(config, **row.model_options)
    return row.wrap(model, name=name, revision="no weights", licence=licence)
