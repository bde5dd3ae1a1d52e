"""The named recipes. Data, no machinery."""

from __future__ import annotations

from sapwood.methods.method import KIND_SETTINGS, Method, merged

_ALIGN = {"align": "gaussian"}
_RANPAC = {"projection": 2000}
# Nothing learned before can be hurt in the first round, so the rate is that of joint training.
_FIRST = {"adapt": "first", "lr": 2e-3}
# Equal trials (docs/results.md) chose more than the usual rate: for the head that reads a LoRA which learns on, and for
# all of a method that keeps a pair a round, or holds back what matters to earlier ones.
_READ = {"training": {"head_lr": 1e-2}}
_HELD = {"training": {"lr": 1e-3}}
_FULL = {"lr": 3e-5, "head_lr": 3e-3}
_MASKS = KIND_SETTINGS["segmentation"]
_FULL_MASKS = merged(_MASKS, {"training": {"lr": 3e-5, "head_lr": 1e-3}})
_STEMS = {"head": {"stem": "per_task"}}
_LORA = "arXiv 2106.09685"
_SD_LORA = "ICLR 2025, arXiv 2501.13198"
_CLORA = "CoLLAs 2025, arXiv 2507.19887"

RECIPES = (
    Method("seq-lora", "lora", "finetune", "linear", "one LoRA, learning on in every round", _LORA, _READ),
    Method("lora+lwf", "lora", "lwf", "linear", "LoRA with distillation of the old classes", "ECCV 2016"),
    Method("lora+ewc", "lora", "ewc", "linear", "LoRA anchored by the Fisher diagonal", "arXiv 1612.00796", _HELD),
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
        settings=merged(_READ, {"head": {"drift": "linear"}}),
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
    Method("clora+lwf", "lora", "lwf", "linear", "CLoRA with distillation of the old classes", _CLORA),
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
    Method(
        "c-lora",
        "routed",
        "finetune",
        "linear",
        "one LoRA for all rounds, learning through a matrix between its factors",
        "arXiv 2502.17920",
        reconstructed=True,
    ),
    Method(
        "dual-lora",
        "dual",
        "finetune",
        "linear",
        "an adapter orthogonal to earlier rounds beside a gated one in their residual directions",
        "arXiv 2411.00623",
        settings=_HELD,
        reconstructed=True,
    ),
    Method(
        "color",
        "experts",
        "finetune",
        "linear",
        "a LoRA a round, chosen by the nearest centre",
        "arXiv 2311.17601",
        settings=_HELD,
        reconstructed=True,
    ),
    Method(
        "color++",
        "experts",
        "finetune",
        "linear",
        "as color, the centres in features tuned on the first round",
        "arXiv 2311.17601",
        merged(_HELD, {"adapter": {"identify": "first"}}),
        reconstructed=True,
    ),
    Method(
        "o-lora",
        "orthogonal",
        "finetune",
        "linear",
        "a LoRA a round, orthogonal to earlier ones",
        "arXiv 2310.14152",
        _HELD,
    ),
    Method(
        "inflora",
        "inflora",
        "finetune",
        "linear",
        "a LoRA a round, outside the directions that earlier pictures take",
        "CVPR 2024, arXiv 2404.00228",
    ),
    Method(
        "sd-lora",
        "sdlora",
        "finetune",
        "linear",
        "a frozen direction a round, all magnitudes learning on",
        _SD_LORA,
        settings=_HELD,
        reconstructed=True,
    ),
    Method(
        "sd-lora-rr",
        "sdlora",
        "finetune",
        "linear",
        "sd-lora, later rounds with lower ranks",
        _SD_LORA,
        merged(_HELD, {"adapter": {"later_ranks": [8, 6]}}),
        reconstructed=True,
    ),
    Method(
        "sd-lora-kd",
        "sdlora",
        "finetune",
        "linear",
        "sd-lora, rounds that old directions span are stored as magnitudes",
        _SD_LORA,
        merged(_HELD, {"adapter": {"merge_threshold": 0.01}}),
        reconstructed=True,
    ),
)
