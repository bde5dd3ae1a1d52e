"""The table of families: where each architecture of transformers keeps what a backbone has to show.

A new family is a new row, not a new class; ``transformer.TransformersBackbone`` reads the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Channels = tuple[float, float, float]

IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: tuple[Channels, Channels] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: tuple[Channels, Channels] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Which part of a block reads which input: sites with equal keys may share the statistics of that input.
INPUT_KEYS: Mapping[str, str] = MappingProxyType(
    {"q": "attn", "k": "attn", "v": "attn", "o": "o", "fc1": "fc1", "fc2": "fc2"}
)
_PLAIN = MappingProxyType(
    {
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.o_proj",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    }
)
_CLIP = MappingProxyType(
    {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    }
)
# ViT and its kin refuse an input of another size unless told to interpolate; DINOv2 always interpolates.
_INTERPOLATE: Mapping[str, Any] = MappingProxyType({"interpolate_pos_encoding": True})


@dataclass(frozen=True)
class Family:
    """One row: an architecture of transformers and how to read it.

    Attributes:
        config_class, model_class: names in transformers; imported only when a backbone is made.
        model_types: ``model_type`` of the ``config.json`` files that hold such an encoder.
        blocks: path of the list of blocks in the model.
        parts: site name within a block -> path of its module within the block.
        pooled: ``class_token`` (first token after the final norm) or ``pooler`` (the model's own pooling).
        norm: path of the norm after the last block.
        norm_of: what it is applied to: all tokens, or the class token alone, which is then what ``pooler`` gives.
        class_tokens: tokens before registers and patches (2 for DeiT: class and distillation).
        registers: name of the config field that counts register tokens, None if there are none.
        model_options: keyword arguments of the model's constructor.
        forward_options: keyword arguments of every forward.
        patch, table_size: pixels, of the encoders that are made from their names alone.
        widths_by_ratio: the config has ``mlp_ratio`` in place of ``intermediate_size``.
        working_size: default input in pixels where the position table was made for a larger one.
        unused: beginnings of parameter names that a checkpoint may lack, since no output depends on them.
        mean, std: per channel, on pixels in 0..1, where a checkpoint brings none.
    """

    config_class: str
    model_class: str
    model_types: tuple[str, ...]
    blocks: str
    parts: Mapping[str, str]
    pooled: Literal["class_token", "pooler"]
    class_tokens: int
    norm: str = "layernorm"
    norm_of: Literal["tokens", "class_token"] = "tokens"
    registers: str | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    forward_options: Mapping[str, Any] = field(default_factory=dict)
    patch: int = 16
    table_size: int = 224
    widths_by_ratio: bool = False
    working_size: int | None = None
    unused: tuple[str, ...] = ()
    mean: Channels = IMAGENET[0]
    std: Channels = IMAGENET[1]

    def prefix_tokens(self, config: Any) -> int:
        """Number of tokens before the patches, for a config of this family."""
        return self.class_tokens + (int(getattr(config, self.registers)) if self.registers else 0)

    def config(
        self, width: int, depth: int, heads: int, *, patch: int | None = None, table: int | None = None
    ) -> dict[str, Any]:
        """Settings of ``config_class`` for an encoder of so many features, blocks and heads; MLPs are 4 times as wide.

        ``patch`` and ``table`` are in pixels, the family's own if None.
        """
        return {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "patch_size": patch or self.patch,
            "image_size": table or self.table_size,
            **({"mlp_ratio": 4} if self.widths_by_ratio else {"intermediate_size": 4 * width}),
        }


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "dinov2": Family(
            "Dinov2Config",
            "Dinov2Model",
            ("dinov2",),
            "encoder.layer",
            _PLAIN,
            pooled="class_token",
            class_tokens=1,
            patch=14,
            table_size=518,
            widths_by_ratio=True,
            working_size=224,
            unused=("embeddings.mask_token",),
        ),
        "dinov2-reg": Family(
            "Dinov2WithRegistersConfig",
            "Dinov2WithRegistersModel",
            ("dinov2_with_registers",),
            "encoder.layer",
            _PLAIN,
            pooled="class_token",
            class_tokens=1,
            registers="num_register_tokens",
            patch=14,
            table_size=518,
            widths_by_ratio=True,
            working_size=224,
            unused=("embeddings.mask_token",),
        ),
        "vit": Family(
            "ViTConfig",
            "ViTModel",
            ("vit",),
            "layers",
            _PLAIN,
            pooled="class_token",
            class_tokens=1,
            model_options={"add_pooling_layer": False},
            forward_options=_INTERPOLATE,
            mean=HALF[0],
            std=HALF[1],
        ),
        "deit": Family(
            "DeiTConfig",
            "DeiTModel",
            ("deit",),
            "layers",
            _PLAIN,
            pooled="class_token",
            class_tokens=2,
            model_options={"add_pooling_layer": False},
            forward_options=_INTERPOLATE,
        ),
        "clip": Family(
            "CLIPVisionConfig",
            "CLIPVisionModel",
            ("clip", "clip_vision_model"),
            "encoder.layers",
            _CLIP,
            pooled="pooler",
            class_tokens=1,
            norm="post_layernorm",
            norm_of="class_token",
            forward_options=_INTERPOLATE,
            mean=CLIP[0],
            std=CLIP[1],
        ),
        "siglip": Family(
            "SiglipVisionConfig",
            "SiglipVisionModel",
            ("siglip", "siglip_vision_model"),
            "encoder.layers",
            _CLIP,
            pooled="pooler",
            class_tokens=0,
            norm="post_layernorm",
            forward_options=_INTERPOLATE,
            mean=HALF[0],
            std=HALF[1],
        ),
    }
)
