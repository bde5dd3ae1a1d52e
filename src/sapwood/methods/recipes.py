"""The named recipes that learn pictures. Data, no machinery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.methods.method import Method, merged

ENDINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "slca": ("linear", {"align": "gaussian"}),
    "ridge": ("ridge", {"drift": "linear"}),
    "ridge-6": ("ridge", {"drift": "linear", "blocks": "-6:"}),
}
"""Endings of a name that stand for a head with statistics which follow an adapter that moves."""
_ALIGN = ENDINGS["slca"][1]
_RANPAC = {"projection": 2000}
# Nothing learned before can be hurt in the first round, so the rate is that of joint training.
_FIRST = {"adapt": "first", "lr": 2e-3}
# Equal trials (docs/results.md): the head that reads a LoRA which learns on learns faster than it.
_READ = {"training": {"head_lr": 1e-2}}
_EXPERTS = {"training": {"head_lr": 1e-2, "lr": 1e-3}}
# The factor that starts drawn sits behind the one that starts at zero, and is wider: a step moves the outputs further.
_ROUTED = {"training": {"head_lr": 1e-2, "lr": 1e-4}}
_FULL = {"lr": 3e-5, "head_lr": 3e-3}
_LORA = "arXiv 2106.09685"
_CLORA = "CoLLAs 2025, arXiv 2507.19887"
_SD_LORA = "ICLR 2025, arXiv 2501.13198"

RECIPES = (
    Method("seq-lora", "lora", "finetune", "linear", "one LoRA, learning on in every round", _LORA, _READ),
    Method("lora+lwf", "lora", "lwf", "linear", "LoRA with distillation of the old classes", "ECCV 2016", _READ),
    Method("lora+ewc", "lora", "ewc", "linear", "LoRA anchored by the Fisher diagonal", "arXiv 1612.00796", _READ),
    Method(
        "full-finetune",
        "full",
        "finetune",
        "linear",
        "all weights train",
        settings={"training": {"lr": 3e-5, "head_lr": 1e-3}},
    ),
    Method(
        "slca",
        "full",
        "finetune",
        "linear",
        "all weights at a hundredth of the head's rate, head aligned on Gaussians",
        "ICCV 2023, arXiv 2303.05118",
        {"training": _FULL, "head": _ALIGN},
    ),
    Method(
        "seq-lora+slca",
        "lora",
        "finetune",
        "linear",
        "LoRA, head aligned on Gaussians",
        settings=merged(_READ, {"head": _ALIGN}),
    ),
    Method(
        "seq-lora+ridge",
        "lora",
        "finetune",
        "ridge",
        "LoRA, ridge head whose sums are carried along when the features move",
        settings=merged(_READ, {"head": ENDINGS["ridge"][1]}),
    ),
    Method("ncm", "none", "finetune", "prototype", "frozen features, nearest class mean", "arXiv 2303.07338"),
    Method(
        "ridge",
        "none",
        "finetune",
        "ridge",
        "frozen features, ridge regression on sums kept from round to round",
        "NeurIPS 2022, arXiv 2205.14922",
    ),
    Method(
        "ridge-4",
        "none",
        "finetune",
        "ridge",
        "frozen class tokens of the last four blocks, ridge regression on them together",
        "TMLR 2024, arXiv 2312.08888",
        {"head": {"blocks": "-4:"}},
    ),
    Method(
        "ranpac",
        "none",
        "finetune",
        "ridge",
        "frozen features, random projection, ridge regression",
        "NeurIPS 2023, arXiv 2307.02251",
        {"head": _RANPAC},
    ),
    Method(
        "layup",
        "none",
        "finetune",
        "ridge",
        "frozen class tokens of the last six blocks, ridge regression on them together",
        "TMLR 2024, arXiv 2312.08888",
        {"head": {"blocks": "-6:"}},
    ),
    Method(
        "lora+ranpac",
        "lora",
        "finetune",
        "ridge",
        "LoRA learns in the first round and stays, then as ranpac",
        "NeurIPS 2023, arXiv 2307.02251",
        {"head": _RANPAC, "training": _FIRST},
    ),
    Method(
        "lora+layup",
        "lora",
        "finetune",
        "ridge",
        "LoRA learns in the first round and stays, then as layup",
        "TMLR 2024, arXiv 2312.08888",
        {"head": {"blocks": "-6:"}, "training": _FIRST},
    ),
    Method(
        "joint",
        "lora",
        "finetune",
        "linear",
        "all rounds' pictures at once, LoRA: upper bound",
        settings={"training": {"lr": 2e-3}},
        all_data=True,
    ),
    Method(
        "joint-full",
        "full",
        "finetune",
        "linear",
        "all rounds' pictures at once, all weights: upper bound",
        settings={"training": {"lr": 3e-5, "head_lr": 1e-3}},
        all_data=True,
    ),
    Method("clora", "lora", "finetune", "linear", "seq-lora by its segmentation name: CLoRA (FT)", _CLORA, _READ),
    Method("clora+lwf", "lora", "lwf", "linear", "CLoRA with distillation of the old classes", _CLORA, _READ),
    Method(
        "c-lora",
        "routed",
        "finetune",
        "linear",
        "one LoRA for all rounds, learning through a matrix between its factors",
        "arXiv 2502.17920",
        settings=_ROUTED,
        reconstructed=True,
    ),
    Method(
        "dual-lora",
        "dual",
        "finetune",
        "linear",
        "an adapter orthogonal to earlier rounds beside a gated one in their residual directions",
        "arXiv 2411.00623",
        settings=_READ,
        reconstructed=True,
    ),
    Method(
        "color",
        "experts",
        "finetune",
        "linear",
        "a LoRA a round, chosen by the nearest centre",
        "arXiv 2311.17601",
        settings=_EXPERTS,
        reconstructed=True,
    ),
    Method(
        "color++",
        "experts",
        "finetune",
        "linear",
        "as color, the centres in features tuned on the first round",
        "arXiv 2311.17601",
        merged(_EXPERTS, {"adapter": {"identify": "first"}}),
        reconstructed=True,
    ),
    Method(
        "o-lora",
        "orthogonal",
        "finetune",
        "linear",
        "a LoRA a round, orthogonal to earlier ones",
        "arXiv 2310.14152",
        _READ,
    ),
    Method(
        "inflora",
        "inflora",
        "finetune",
        "linear",
        "a LoRA a round, outside the directions that earlier pictures take",
        "CVPR 2024, arXiv 2404.00228",
        _READ,
    ),
    Method(
        "inflora+ridge-6",
        "inflora",
        "finetune",
        "ridge",
        "inflora, ridge head on the last six blocks whose sums are carried along",
        settings=merged(_READ, {"head": ENDINGS["ridge-6"][1]}),
    ),
    Method(
        "sd-lora",
        "sdlora",
        "finetune",
        "linear",
        "a frozen direction a round, all magnitudes learning on",
        _SD_LORA,
        settings=_READ,
        reconstructed=True,
    ),
    Method(
        "sd-lora-rr",
        "sdlora",
        "finetune",
        "linear",
        "sd-lora, later rounds with lower ranks",
        _SD_LORA,
        merged(_READ, {"adapter": {"later_ranks": [8, 6]}}),
        reconstructed=True,
    ),
    Method(
        "sd-lora-kd",
        "sdlora",
        "finetune",
        "linear",
        "sd-lora, rounds that old directions span are stored as magnitudes",
        _SD_LORA,
        merged(_READ, {"adapter": {"merge_threshold": 0.01}}),
        reconstructed=True,
    ),
)
