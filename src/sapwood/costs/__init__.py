"""What learning costs: parameters, operations, bytes, NetScore, and time and memory before a round begins."""

from __future__ import annotations

from sapwood.costs.counting import Cost, network_cost
from sapwood.costs.estimate import Estimate, estimate_round
from sapwood.costs.measure import seconds_per_picture
from sapwood.costs.plans import clora_cost, state_cost
from sapwood.costs.score import netscore
from sapwood.costs.stored import declared_bytes, example_adapter, stored_bytes

__all__ = [
    "Cost",
    "Estimate",
    "clora_cost",
    "declared_bytes",
    "estimate_round",
    "example_adapter",
    "netscore",
    "network_cost",
    "seconds_per_picture",
    "state_cost",
    "stored_bytes",
]
