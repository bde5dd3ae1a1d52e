"""The state folder: immutable versions behind one pointer, one writer, a checkpoint to resume from.

Nothing here knows of networks: a version is a JSON record and the files (tensors, text) that it names.
"""

from __future__ import annotations

from sapwood.state.back import take_back
from sapwood.state.folder import State
from sapwood.state.records import FORMAT, StateMoved, Version
from sapwood.state.training import TrainingFolder

__all__ = ["FORMAT", "State", "StateMoved", "TrainingFolder", "Version", "take_back"]
