"""Parameters and operations of a network, counted on the meta device: any size on any machine, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sapwood.adapters import Adapter
from sapwood.backbones.base import height_width
from sapwood.costs.score import netscore
from sapwood.errors import NotMergeable
from sapwood.heads.base import Head
from sapwood.network import Network
from sapwood.operations import counted

_CLASSIFIERS = ("classifier.", "unknown.")


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        size: (height, width) in pixels of the picture that the forward is counted for.
        network: parameters that predictions need, without the adapter, by part: ``backbone``, ``decoder``,
            ``classifiers``.
        fitted: parameters that a round fits, by part; those of a solved head count, and so does its classifier where
            that trains the adapter.
        gmacs: multiply-accumulates of one picture's prediction in units of 1e9, the adapter beside the weights.
        gmacs_merged: the same with the adapter in the weights; None where it cannot go there.
        bytes_per_task: bytes of the tensors that a round stores.
    """

    size: tuple[int, int]
    network: Mapping[str, int]
    fitted: Mapping[str, int]
    gmacs: float
    gmacs_merged: float | None
    bytes_per_task: int

    @property
    def parameters(self) -> int:
        """Backbone + decoder + classifiers."""
        return sum(self.network.values())

    @property
    def trainable_parameters(self) -> int:
        """All parameters that learning fits."""
        return sum(self.fitted.values())

    def netscore(self, accuracy: float | None) -> float | None:
        """NetScore for an accuracy in per cent; None without one, or where ``netscore`` has no value."""
        return None if accuracy is None else netscore(accuracy, self.trainable_parameters / 1e6, self.gmacs)


def network_cost(network: Network, bytes_per_task: int) -> Cost:
    """Count a network. It is moved to the meta device, its weights are gone afterwards.

    Operations are those that torch's counter knows: products of matrices and convolutions.

    Args:
        network: with a head that has grown; the picture counted has the backbone's ``image_size``.
        bytes_per_task: see ``Cost``.
    """
    head, adapter = network.head, network.adapter
    own = _predicting(head)
    backbone = {"backbone": sum(parameter.numel() for parameter in network.backbone.parameters())}
    fitted = (backbone if adapter.trains_backbone else {"adapter": _count(_training(adapter))}) | own
    if head.fitted == "statistics" and adapter.moves:
        fitted["classifier for training"] = _count(dict(head.classifier.named_parameters()))
    network.to("meta")
    network.refold()
    size = height_width(network.backbone.info.image_size)
    gmacs = _gmacs(network, size)
    try:
        network.merge()
        merged: float | None = _gmacs(network, size)
    except NotMergeable:
        merged = None
    return Cost(size, backbone | own, fitted, gmacs, merged, bytes_per_task)


def _gmacs(network: Network, size: tuple[int, int]) -> float:
    with torch.no_grad(), counted() as operations:
        network.predict(torch.empty(1, *size, 3, dtype=torch.uint8, device="meta"))
    return operations.gmacs


def _predicting(head: Head) -> dict[str, int]:
    """Parameters that the head predicts with, by part."""
    if head.fitted == "statistics":
        # A head that solves nothing predicts with what it keeps (class means); counts of pictures are no parameters.
        solved = head.solved_tensors() or head.kept_statistics()
        return {"classifiers": _count({name: value for name, value in solved.items() if value.is_floating_point()})}
    parameters = dict(head.named_parameters())
    rows = {name: value for name, value in parameters.items() if name.startswith(_CLASSIFIERS)}
    decoder = {name: value for name, value in parameters.items() if name not in rows}
    return {"decoder": _count(decoder), "classifiers": _count(rows)}


def _training(adapter: Adapter) -> dict[str, Tensor]:
    """What a round trains; what earlier rounds have left behind is frozen."""
    return {name: parameter for name, parameter in adapter.named_parameters() if parameter.requires_grad}


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
