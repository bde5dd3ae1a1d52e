"""Objectives by name."""

from __future__ import annotations

from sapwood.objectives.base import Objective, Outputs
from sapwood.objectives.ewc import ElasticWeightConsolidation
from sapwood.objectives.finetune import Finetune
from sapwood.objectives.ilt import IncrementalLearningTechniques
from sapwood.objectives.lwf import LearningWithoutForgetting
from sapwood.objectives.mib import ModellingTheBackground
from sapwood.registry import Registry

OBJECTIVES: Registry[type[Objective]] = Registry("objective", "objectives")
OBJECTIVES.add("finetune", Finetune)
OBJECTIVES.add("lwf", LearningWithoutForgetting)
OBJECTIVES.add("ewc", ElasticWeightConsolidation)
OBJECTIVES.add("ilt", IncrementalLearningTechniques)
OBJECTIVES.add("mib", ModellingTheBackground)

__all__ = ["OBJECTIVES", "Objective", "Outputs"]
