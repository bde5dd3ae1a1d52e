"""Objectives by name."""

from __future__ import annotations

from sapwood.objectives.base import Objective, Outputs
from sapwood.objectives.dkd import DecomposedDistillation
from sapwood.objectives.ewc import ElasticWeightConsolidation
from sapwood.objectives.finetune import Finetune
from sapwood.objectives.ilt import IncrementalLearningTechniques
from sapwood.objectives.lwf import LearningWithoutForgetting
from sapwood.objectives.mib import ModellingTheBackground
from sapwood.objectives.plop import Plop
from sapwood.objectives.rcil import RepresentationCompensation
from sapwood.objectives.sats import SelfAttentionTransfer
from sapwood.objectives.ssul import UnknownLabel
from sapwood.registry import Registry

OBJECTIVES: Registry[type[Objective]] = Registry("objective", "objectives")
OBJECTIVES.add("finetune", Finetune)
OBJECTIVES.add("lwf", LearningWithoutForgetting)
OBJECTIVES.add("ewc", ElasticWeightConsolidation)
OBJECTIVES.add("ilt", IncrementalLearningTechniques)
OBJECTIVES.add("mib", ModellingTheBackground)
OBJECTIVES.add("plop", Plop)
OBJECTIVES.add("rcil", RepresentationCompensation)
OBJECTIVES.add("sats", SelfAttentionTransfer)
OBJECTIVES.add("ssul", UnknownLabel)
OBJECTIVES.add("dkd", DecomposedDistillation)

__all__ = ["OBJECTIVES", "Objective", "Outputs"]
