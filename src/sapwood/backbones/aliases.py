"""The tables of names: which encoder each stands for, and its config, so that shapes are known without a download."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sapwood.backbones.families import FAMILIES

Config = Mapping[str, Any]


class Alias(NamedTuple):
    """A checkpoint on the hub.

    Attributes:
        family: key of ``architectures.ARCHITECTURES``.
        repo: id on the hub.
        licence: of the weights; SPDX id where there is one.
        config: settings of the encoder's config class.
    """

    family: str
    repo: str
    licence: str
    config: Config


def _sam(width: int, depth: int, heads: int, **others: Any) -> Config:
    """One block in four attends to the whole picture, the others within windows."""
    every = depth // 4
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "global_attn_indexes": list(range(every - 1, depth, every)),
        **others,
    }


def _mit(widths: tuple[int, ...], depths: tuple[int, ...]) -> Config:
    return {"hidden_sizes": list(widths), "depths": list(depths)}


_vit = {family: row.config for family, row in FAMILIES.items()}
_APACHE = "Apache-2.0"
_NVIDIA = "NVIDIA Source Code License for SegFormer (non-commercial)"
_WIDE = (64, 128, 320, 512)

ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        "dinov2-small": Alias("dinov2", "facebook/dinov2-small", _APACHE, _vit["dinov2"](384, 12, 6)),
        "dinov2-base": Alias("dinov2", "facebook/dinov2-base", _APACHE, _vit["dinov2"](768, 12, 12)),
        "dinov2-large": Alias("dinov2", "facebook/dinov2-large", _APACHE, _vit["dinov2"](1024, 24, 16)),
        "dinov2-reg-small": Alias(
            "dinov2-reg", "facebook/dinov2-with-registers-small", _APACHE, _vit["dinov2-reg"](384, 12, 6)
        ),
        "dinov2-reg-base": Alias(
            "dinov2-reg", "facebook/dinov2-with-registers-base", _APACHE, _vit["dinov2-reg"](768, 12, 12)
        ),
        "dinov2-reg-large": Alias(
            "dinov2-reg", "facebook/dinov2-with-registers-large", _APACHE, _vit["dinov2-reg"](1024, 24, 16)
        ),
        "vit-base": Alias("vit", "google/vit-base-patch16-224-in21k", _APACHE, _vit["vit"](768, 12, 12)),
        "vit-large": Alias("vit", "google/vit-large-patch16-224-in21k", _APACHE, _vit["vit"](1024, 24, 16)),
        "deit-tiny": Alias("deit", "facebook/deit-tiny-distilled-patch16-224", _APACHE, _vit["deit"](192, 12, 3)),
        "deit-small": Alias("deit", "facebook/deit-small-distilled-patch16-224", _APACHE, _vit["deit"](384, 12, 6)),
        "deit-base": Alias("deit", "facebook/deit-base-distilled-patch16-224", _APACHE, _vit["deit"](768, 12, 12)),
        "clip-vit-base-16": Alias("clip", "openai/clip-vit-base-patch16", "MIT", _vit["clip"](768, 12, 12)),
        "clip-vit-base-32": Alias("clip", "openai/clip-vit-base-patch32", "MIT", _vit["clip"](768, 12, 12, patch=32)),
        "clip-vit-large-14": Alias(
            "clip", "openai/clip-vit-large-patch14", "MIT", _vit["clip"](1024, 24, 16, patch=14)
        ),
        "siglip-base": Alias("siglip", "google/siglip-base-patch16-224", _APACHE, _vit["siglip"](768, 12, 12)),
        "siglip-large": Alias(
            "siglip", "google/siglip-large-patch16-256", _APACHE, _vit["siglip"](1024, 24, 16, table=256)
        ),
        "sam-vit-base": Alias("sam", "facebook/sam-vit-base", _APACHE, _sam(768, 12, 12)),
        "sam-vit-large": Alias("sam", "facebook/sam-vit-large", _APACHE, _sam(1024, 24, 16)),
        "sam-vit-huge": Alias("sam", "facebook/sam-vit-huge", _APACHE, _sam(1280, 32, 16)),
        "mit-b0": Alias("mit", "nvidia/mit-b0", _NVIDIA, _mit((32, 64, 160, 256), (2, 2, 2, 2))),
        "mit-b1": Alias("mit", "nvidia/mit-b1", _NVIDIA, _mit(_WIDE, (2, 2, 2, 2))),
        "mit-b2": Alias("mit", "nvidia/mit-b2", _NVIDIA, _mit(_WIDE, (3, 4, 6, 3))),
        "mit-b3": Alias("mit", "nvidia/mit-b3", _NVIDIA, _mit(_WIDE, (3, 4, 18, 3))),
        "mit-b4": Alias("mit", "nvidia/mit-b4", _NVIDIA, _mit(_WIDE, (3, 8, 27, 3))),
        "mit-b5": Alias("mit", "nvidia/mit-b5", _NVIDIA, _mit(_WIDE, (3, 6, 40, 3))),
        "resnet-50": Alias("resnet", "microsoft/resnet-50", _APACHE, {"depths": [3, 4, 6, 3]}),
        "resnet-101": Alias("resnet", "microsoft/resnet-101", _APACHE, {"depths": [3, 4, 23, 3]}),
    }
)

# Size -> (width, blocks, heads) of the plain encoders that are made with random weights; ``tiny`` is for tests.
_SIZES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"tiny": (32, 2, 2), "s": (384, 12, 6), "b": (768, 12, 12)}
)
# SAM's own spread of 1e-10 would leave nothing of a picture.
_SPREAD = {"initializer_range": 0.02}


def random_names() -> dict[str, tuple[str, Config]]:
    """Names of the encoders with random weights -> (family, settings of its config class).

    >>> random_names()["random:vit-tiny"]  # doctest: +ELLIPSIS
    ('vit', {'hidden_size': 32, 'num_hidden_layers': 2, ...})
    """
    names: dict[str, tuple[str, Config]] = {}
    for family, row in FAMILIES.items():
        for size, shape in _SIZES.items():
            tiny = size == "tiny"
            table = 2 * row.patch if tiny else None
            names[f"random:{family}-{size}{'' if tiny else row.patch}"] = (family, row.config(*shape, table=table))
    tiny_sam = _sam(32, 4, 2, image_size=64, window_size=3, output_channels=16, **_SPREAD)
    tiny_mit = {**_mit((8, 16, 16, 24), (1, 2, 1, 1)), "num_attention_heads": [1, 2, 2, 3]}
    tiny_resnet = {"embedding_size": 8, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 2, 1, 2]}
    return names | {
        "random:sam-b16": ("sam", {**_sam(768, 12, 12), **_SPREAD}),
        "random:sam-tiny": ("sam", tiny_sam),
        "random:mit-b0": ("mit", ALIASES["mit-b0"].config),
        "random:mit-tiny": ("mit", tiny_mit),
        "random:resnet50": ("resnet", ALIASES["resnet-50"].config),
        "random:resnet101": ("resnet", ALIASES["resnet-101"].config),
        "random:resnet-tiny": ("resnet", tiny_resnet),
    }
