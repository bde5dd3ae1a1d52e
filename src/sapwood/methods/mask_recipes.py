"""The named recipes that learn masks alone. Data, no machinery."""

from __future__ import annotations

from sapwood.methods.method import KIND_SETTINGS, Method, merged

_MASKS = KIND_SETTINGS["segmentation"]
_FULL_MASKS = merged(_MASKS, {"training": {"lr": 3e-5, "head_lr": 1e-3}})
_STEMS = {"head": {"stem": "per_task"}}
_CLORA = "CoLLAs 2025, arXiv 2507.19887"

MASK_RECIPES = (
    Method("clora+ilt", "lora", "ilt", "dense", "CLoRA with distillation of logits and features", _CLORA, _MASKS),
    Method("clora+mib", "lora", "mib", "dense", "CLoRA with losses that know of the background shift", _CLORA, _MASKS),
    Method(
        "clora-reinit+mib",
        "lora",
        "mib",
        "dense",
        "as clora+mib, with a fresh LoRA in every round",
        _CLORA,
        merged(_MASKS, {"adapter": {"reinit": True}}),
    ),
    Method("frozen+mib", "none", "mib", "dense", "decoder and classifiers learn alone: MiB (TL)", _CLORA, _MASKS),
    Method(
        "clora+plop",
        "lora",
        "plop",
        "dense",
        "CLoRA, pooled features distilled, old classes labelled by the teacher",
        _CLORA,
        _MASKS,
    ),
    Method(
        "clora+rcil", "lora", "rcil", "dense", "CLoRA, decoder of two branches merged after each round", _CLORA, _MASKS
    ),
    Method(
        "clora+sats", "lora", "sats", "dense", "CLoRA, attention within and between classes distilled", _CLORA, _MASKS
    ),
    Method(
        "clora+ssul",
        "lora",
        "ssul",
        "dense",
        "CLoRA, then only classifiers learn; what is salient and nameless is unknown",
        _CLORA,
        merged(_MASKS, _STEMS),
    ),
    Method(
        "clora+dkd", "lora", "dkd", "dense", "CLoRA, logits distilled as positive and negative parts", _CLORA, _MASKS
    ),
    Method(
        "full+mib", "full", "mib", "dense", "all weights train: MiB itself", "CVPR 2020, arXiv 2002.00718", _FULL_MASKS
    ),
    Method(
        "full+plop",
        "full",
        "plop",
        "dense",
        "all weights train: PLOP itself",
        "CVPR 2021, arXiv 2011.11390",
        _FULL_MASKS,
    ),
    Method(
        "full+rcil",
        "full",
        "rcil",
        "dense",
        "all weights train: RCIL itself, branches in the decoder",
        "CVPR 2022, arXiv 2203.05402",
        _FULL_MASKS,
    ),
    Method(
        "full+sats",
        "full",
        "sats",
        "dense",
        "all weights train: SATS itself",
        "Pattern Recognition 2023, arXiv 2203.07667",
        _FULL_MASKS,
    ),
    Method(
        "full+ssul",
        "full",
        "ssul",
        "dense",
        "all weights train in the first round: SSUL itself",
        "NeurIPS 2021, arXiv 2106.11562",
        merged(_FULL_MASKS, _STEMS),
    ),
    Method(
        "full+dkd",
        "full",
        "dkd",
        "dense",
        "all weights train: DKD itself",
        "NeurIPS 2022",
        _FULL_MASKS,
    ),
)
