"""Settings as typed frozen dataclasses, and `part.key=value` overrides that know which keys exist."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from sapwood.errors import ConfigError

C = TypeVar("C")
_hints: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def check(*rules: tuple[bool, str]) -> None:
    """Raise one ConfigError that holds every message whose condition is false.

    >>> check((1 > 0, "one must be positive"), (0 > 1, "zero must be above one"))
    Traceback (most recent call last):
    ...
    sapwood.errors.ConfigError: zero must be above one
    """
    faults = [message for holds, message in rules if not holds]
    if faults:
        raise ConfigError("; ".join(faults))


@dataclass(frozen=True)
class TrainingConfig:
    """How one round is trained.

    Attributes:
        epochs: passes over the round's training pictures.
        batch_size: pictures a step.
        lr: peak learning rate of the adapter (or of the backbone, for ``full``).
        head_lr: peak learning rate of the head; None is ``lr``.
        optimizer: ``adamw`` or ``sgd`` (Nesterov momentum 0.9).
        schedule: ``cosine`` or ``poly`` (power 0.9), per step, down to zero; ``constant``.
        warmup: share of the steps over which the rate rises linearly.
        weight_decay: decoupled, on adapter and backbone; heads have none, so that rows outside the loss stay put.
        accumulate: batches whose gradients are added up before a step.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the device computes it natively.
        workers: processes that make the training views; 0 makes them in the main process.
        validation: share of each class's training pictures held out; classes below 10 pictures give none.
        augment: random resized crops and flips, else the plain view.
        balance: ``auto``: classes that a round brings unevenly are shown equally often, and heads that are fitted from
            sums of features weigh all classes alike; ``none`` lets every picture count the same. Of masks neither.
        cache_prefix: views of each picture for which the blocks below the first adapted one are computed once and kept
            on disk; 1 is the plain view, with more the epochs take turns. 0 gives every epoch views of its own.
        adapt: ``always``, or ``first``: the adapter learns in the first round and then stays.
        checkpoint_seconds: longest time between two checkpoints.
    """

    epochs: int = 5
    batch_size: int = 32
    lr: float = 3e-4
    head_lr: float | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 1e-4
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    workers: int = 0
    validation: float = 0.1
    augment: bool = True
    balance: Literal["auto", "none"] = "auto"
    cache_prefix: int = 0
    adapt: Literal["always", "first"] = "always"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        check(
            (self.epochs >= 1, f"training.epochs must be >= 1, got {self.epochs}"),
            (self.batch_size >= 1, f"training.batch_size must be >= 1, got {self.batch_size}"),
            (0 < self.lr < math.inf, f"training.lr must be > 0 and finite, got {self.lr}"),
            (self.head_lr is None or 0 < self.head_lr < math.inf, f"training.head_lr must be > 0, got {self.head_lr}"),
            (0 <= self.warmup < 1, f"training.warmup must be in [0, 1), got {self.warmup}"),
            (self.weight_decay >= 0, f"training.weight_decay must be >= 0, got {self.weight_decay}"),
            (self.accumulate >= 1, f"training.accumulate must be >= 1, got {self.accumulate}"),
            (self.workers >= 0, f"training.workers must be >= 0, got {self.workers}"),
            (0 <= self.validation < 1, f"training.validation must be in [0, 1), got {self.validation}"),
            (self.cache_prefix >= 0, f"training.cache_prefix must be >= 0, got {self.cache_prefix}"),
            (self.checkpoint_seconds > 0, f"training.checkpoint_seconds must be > 0, got {self.checkpoint_seconds}"),
        )


def build(config_type: type[C], values: Mapping[str, Any], part: str) -> C:
    """A config from plain values, each coerced to its field's type.

    >>> build(TrainingConfig, {"epochs": "3", "head_lr": "none"}, "training").epochs
    3
    >>> build(TrainingConfig, {"epoch": 3}, "training")
    Traceback (most recent call last):
    ...
    sapwood.errors.ConfigError: no setting 'training.epoch'. Did you mean 'training.epochs'? Settings of training: accumulate, adapt, augment, balance, batch_size, cache_prefix, checkpoint_seconds, epochs, head_lr, lr, optimizer, precision, schedule, validation, warmup, weight_decay, workers
    """  # noqa: E501
    hints = _hints(config_type)
    fields = [field.name for field in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f" Did you mean '{part}.{near[0]}'?" if near else ""
            known = ", ".join(sorted(fields)) or "none"
            raise ConfigError(f"no setting '{part}.{key}'.{hint} Settings of {part}: {known}")
    return config_type(**{key: _coerce(value, hints[key], f"{part}.{key}") for key, value in values.items()})


def plain(config: Any) -> dict[str, Any]:
    """The config as JSON-ready values."""
    return {
        field.name: list(value) if isinstance(value := getattr(config, field.name), tuple) else value
        for field in dataclasses.fields(config)
    }


def parse_assignments(assignments: list[str]) -> dict[str, dict[str, str]]:
    """``["adapter.rank=8"]`` as ``{"adapter": {"rank": "8"}}``."""
    parts: dict[str, dict[str, str]] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        part, dot, name = key.strip().partition(".")
        if not (equals and dot and name):
            raise ConfigError(f"--set {assignment!r}: write it as part.key=value, e.g. adapter.rank=8")
        if part not in ("adapter", "objective", "head", "training"):
            raise ConfigError(f"--set {assignment!r}: no part {part!r}; parts are adapter, objective, head, training")
        parts.setdefault(part, {})[name] = value.strip()
    return parts


def _coerce(value: Any, hint: Any, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = typing.get_args(hint)
        if type(None) in options and (value is None or value in ("none", "null", "None", "")):
            return None
        return _coerce(value, next(option for option in options if option is not type(None)), key)
    if origin is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(f"{key} must be one of {', '.join(map(str, allowed))}, got {value!r}")
        return value
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        inner = typing.get_args(hint)[0]
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{key} must be a list, got {value!r}")
        return tuple(
            _coerce(item.strip() if isinstance(item, str) else item, inner, key) for item in items if item != ""
        )
    return _scalar(value, hint, key)


def _scalar(value: Any, hint: type, key: str) -> Any:
    if hint is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise ConfigError(f"{key} must be true or false, got {value!r}")
    try:
        if hint is int and isinstance(value, float) and value != int(value):
            raise ValueError
        found = hint(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{key} must be of type {hint.__name__}, got {value!r}") from None
    if isinstance(found, float) and not math.isfinite(found):
        raise ConfigError(f"{key} must be finite, got {value!r}")
    return found
