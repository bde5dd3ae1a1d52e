"""Local folders: checkpoints as the hub has them, and folders that are not as they should be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sapwood.backbones import Backbone, create_backbone, fingerprint
from sapwood.errors import BackboneError

# The names that today's checkpoints on the hub have, from those of transformers 5.23: pattern -> replacement.
BERT_NAMES = [
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
]
VIT_NAMES = [
    (r"^layers\.", "encoder.layer."),
    *BERT_NAMES,
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
HUB_FORMATS = {
    "dinov2": ("dinov2", "", BERT_NAMES),
    "dinov2-reg": ("dinov2_with_registers", "", BERT_NAMES),
    "vit": ("vit", "vit.", VIT_NAMES),
    "deit": ("deit", "deit.", VIT_NAMES),
    "clip": ("clip", "vision_model.", []),
    "siglip": ("siglip", "vision_model.", []),
}

Harm = Callable[[Path], object]


def save(backbone: Backbone, folder: Path) -> Path:
    backbone.model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    return save(create_backbone("random:dinov2-tiny"), tmp_path / "my model")


@pytest.mark.parametrize("family", HUB_FORMATS)
def test_a_checkpoint_in_the_hubs_format_loads_every_weight(family: str, tmp_path: Path) -> None:
    """Whole CLIP and classifiers too: with their prefix, their old names and the tensors of other parts."""
    original = create_backbone(f"random:{family}-tiny")
    generator = torch.Generator().manual_seed(5)
    for parameter in original.model.parameters():  # no two tensors alike, so that a wrong name shows
        parameter.data.normal_(std=0.2, generator=generator)
    model_type, prefix, renames = HUB_FORMATS[family]
    tensors = {}
    for name, tensor in original.model.state_dict().items():
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        tensors[prefix + name] = tensor.contiguous()
    tensors["classifier.weight" if "vision" not in prefix else "text_model.final_layer_norm.weight"] = torch.ones(3, 32)
    config = original.model.config.to_dict()
    if prefix == "vision_model.":
        text = {"model_type": f"{model_type}_text_model", "hidden_size": 32, "num_hidden_layers": 1}
        config = {"vision_config": config, "text_config": text}
    config["model_type"] = model_type
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded = create_backbone(str(tmp_path))
    assert loaded.info.sha256 == fingerprint(original.model)
    images = torch.randn(2, 3, 3 * original.info.patch, 2 * original.info.patch, generator=generator)
    with torch.no_grad():
        assert torch.equal(loaded(images).pooled, original(images).pooled)
        assert torch.equal(loaded(images).patches, original(images).patches)


def test_info_of_a_folder(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tiny_folder / "preprocessor_config.json").write_text(json.dumps(settings))
    monkeypatch.chdir(tiny_folder.parent)
    info = create_backbone("./my model").info
    assert info.name == str(tiny_folder)
    assert (info.family, info.revision, info.licence) == ("dinov2", "local", "unknown")
    assert (info.mean, info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_loading_is_silent(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    create_backbone(str(tiny_folder))
    assert capfd.readouterr() == ("", "")


def drop(name: str) -> Harm:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Harm:
    return lambda folder: (folder / name).write_bytes(content)


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def deeper(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (drop("config.json"), "no config.json"),
        (write("config.json", b"{nonsense"), r"config\.json: cannot be read"),
        (write("config.json", b"[]"), "a JSON object was expected"),
        (write("config.json", b'{"model_type": "bert"}'), r"model_type 'bert' is not one of .*dinov2.*siglip"),
        (drop("model.safetensors"), r"holds no model\.safetensors"),
        (pickled_only, r"pickled weights only \(pytorch_model\.bin\).*refused.*save_pretrained"),
        (truncated, "cannot be loaded as Dinov2Model"),
        (other_width, "cannot be loaded as Dinov2Model"),
        (deeper, r"lack 18 tensors of Dinov2Model, the first is encoder\.layer\.2"),
    ],
)
def test_a_broken_folder_is_one_line(harm: Harm, says: str, tiny_folder: Path) -> None:
    harm(tiny_folder)
    with pytest.raises(BackboneError, match=says) as caught:
        create_backbone(str(tiny_folder))
    assert "\n" not in str(caught.value)
    assert str(tiny_folder) in str(caught.value)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: cc-by-nc-4.0\n---\nAn encoder.\n", "cc-by-nc-4.0"),
        ("An encoder.\n", "unknown"),
        ("---\nlicense: [\n---\n", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_folder_has_the_licence_that_its_card_states(tiny_folder: Path, card: str | None, licence: str) -> None:
    if card is not None:
        (tiny_folder / "README.md").write_text(card)
    assert create_backbone(str(tiny_folder)).info.licence == licence
