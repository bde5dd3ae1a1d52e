"""LoRAs for PEFT: families and fused layers, what each adapter knows of its factors, one expert, refusals."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from sapwood.adapters import ADAPTERS, Adapter
from sapwood.backbones import create_backbone
from sapwood.backbones.packed import save_backbone
from sapwood.errors import ConfigError, NotMergeable, SapwoodError
from sapwood.export import Options, Plain, export
from sapwood.export.peft import write
from sapwood.export.views import made_up
from sapwood.functional.factorise import factor_error
from sapwood.heads import HEADS
from sapwood.learner import Learner
from sapwood.network import Network
from sapwood.packing import pack
from sapwood.state import State
from sapwood.task import Task

Taught = Callable[..., Path]
MakePlain = Callable[..., Plain]

TASKS = [Task(index, str(index), (index,), (index,), index + 1, seed=3) for index in range(3)]
FAMILIES = ["dinov2-reg", "vit", "deit", "clip", "siglip", "sam", "mit", "resnet"]


def fill(module: torch.nn.Module, seed: int) -> None:
    """Stand in for training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def adapter_of(name: str, backbone: str, size: int, rounds: int = 1, **settings: Any) -> tuple[Adapter, Any]:
    """An adapter after some rounds that were made up, and its backbone."""
    encoder = create_backbone(backbone, size)
    kind = ADAPTERS[name]
    adapter = kind(kind.Config(**settings), encoder.sites, encoder.info)
    for task in TASKS[:rounds]:
        adapter.before_task(task, None)
        fill(adapter, task.index)
        adapter.after_task(task, None)  # type: ignore[arg-type]
    return adapter, encoder


def made(name: str, backbone: str = "random:dinov2-tiny", size: int = 28, **settings: Any) -> Plain:
    """A network of two classes with such an adapter."""
    adapter, encoder = adapter_of(name, backbone, size, **settings)
    head = HEADS["linear"](HEADS["linear"].Config(), encoder.info.dim)
    head.grow(2, torch.Generator().manual_seed(1))
    head.classifier.draw_idle(torch.Generator().manual_seed(1))
    network = Network(encoder, adapter, head)
    network.refold()
    record = {"kind": "classification", "classes": [{"name": "ant"}, {"name": "bee"}], "image_size": size}
    return Plain(network, record | {"tasks": [], "parts": {"adapter": name}, "method": name}, "1")


def options(plain: Plain) -> Options:
    return Options(plain.image_size, made_up(plain.image_size, 3), "made-up pictures")


def stock(name: str, folder: Path) -> type[Any]:
    """The class of the backbone's library; its weights as they came are then in the folder."""
    model = create_backbone(name).get_submodule("model")
    model.save_pretrained(folder)  # type: ignore[operator]
    return type(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lines_of_the_card_run_on_a_stock_backbone(family: str, tmp_path: Path) -> None:
    """Also SAM's fused projection, different ranks a layer (MiT), and convolutions, dilated ones too (ResNet)."""
    name, out = f"random:{family}-tiny", tmp_path / "out"
    settings = {} if family == "resnet" else {"targets": ("q", "v", "fc1")}
    plain = made("lora", name, 42 if "dinov2" in family else 64, rank=12, **settings)
    out.mkdir()
    check = write(plain, out, options(plain))
    assert check.max_difference <= 1e-5
    stock(name, tmp_path / "base")
    (code,) = re.findall(r"```python\n(.*?)```", check.usage, re.DOTALL)
    assert "sapwood" not in code
    code = code.replace('"BASE"', repr(str(tmp_path / "base"))).replace('"OUT', f'"{out}')
    pixels = options(plain).pixel_values(plain)
    scope: dict[str, Any] = {"pixel_values": pixels}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        exec(code, scope)
    torch.testing.assert_close(scope["scores"], plain(pixels).softmax(1), atol=1e-5, rtol=0)


def test_a_fused_projection_has_one_pair_for_its_parts(tmp_path: Path) -> None:
    plain = made("lora", "random:sam-tiny", 64, rank=3, targets=("q", "v", "o"))
    write(plain, tmp_path, options(plain))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    fused = "base_model.model.vision_encoder.layers.0.attn.qkv"
    assert tensors[f"{fused}.lora_A.weight"].shape == (6, 32)
    up = tensors[f"{fused}.lora_B.weight"]
    assert up.shape == (96, 6)
    assert not up[32:64].any()  # the keys
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    ranks = {config["r"], *config["rank_pattern"].values()}
    assert ranks == {3, 6}
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert config["lora_alpha"] == config["r"]


@pytest.mark.parametrize(
    ("name", "settings", "rank"),
    [
        ("lora", {"rank": 2}, 2),
        ("lora", {"rank": 2, "reinit": True}, 6),
        ("routed", {"rank": 4}, 4),
        ("orthogonal", {"rank": 2}, 6),
        ("sdlora", {"rank": 2}, 6),
        ("sdlora", {"rank": 3, "later_ranks": (1,), "rank_every": 1, "norm": "product"}, 5),
        ("sdlora", {"rank": 2, "carry_magnitudes": False}, 6),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else str(value),
)
def test_what_adapters_know_of_their_factors(name: str, settings: dict[str, Any], rank: int) -> None:
    """Three rounds: the product is the dense change, the rank the sum of the rounds'; also in the midst of a round."""
    adapter, _ = adapter_of(name, "random:dinov2-tiny", 28, rounds=3, **settings)
    site = adapter.sites[1]
    pair = adapter.factors(site)
    assert pair is not None
    assert (pair[0].shape, pair[1].shape) == ((rank, site.inputs), (site.outputs, rank))
    assert factor_error(adapter.dense(site), pair) < 1e-6  # type: ignore[arg-type]
    fill(adapter, 9)
    changed, pair = adapter.dense(site), adapter.factors(site)
    assert pair is not None
    assert changed is not None
    assert changed.abs().max() > 1e-3
    assert factor_error(changed, pair) < 1e-6


def test_more_rounds_than_a_layer_is_wide_take_its_own_rank(tmp_path: Path) -> None:
    plain = made("orthogonal", rounds=3, rank=20)  # 60 rows, of which 32 can be independent
    check = write(plain, tmp_path, options(plain))
    assert check.facts["ranks"] == {"32": 4}
    assert check.max_difference <= 1e-5
    assert check.facts["factor_error"] < 1e-6


class Shift(Adapter):
    """A change that only ``dense`` knows."""

    Config = ADAPTERS["none"].Config
    summary = growth = "nothing"
    change = torch.zeros(32, 32)

    def forward(self, site: Any, x: Tensor, context: Any) -> Tensor | None:
        return None

    def dense(self, site: Any) -> Tensor | None:
        return self.change if site.part == "q" else None

    def before_task(self, task: Task, statistics: Any) -> None: ...


def shifted(change: Tensor, monkeypatch: pytest.MonkeyPatch) -> Plain:
    monkeypatch.setattr(Shift, "change", change)
    monkeypatch.setitem(ADAPTERS._entries, "shift", Shift)  # type: ignore[attr-defined]
    return made("shift")


def test_a_dense_change_is_factored_at_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(32, 3, generator=generator) @ torch.randn(3, 32, generator=generator)
    plain = shifted(low, monkeypatch)
    check = write(plain, tmp_path, options(plain))
    assert check.facts["ranks"] == {"3": 2}
    assert check.max_difference <= 1e-5
    with pytest.raises(SapwoodError, match=r"factors of a weight are \d\.\de-\d\d from its change.*--to merged"):
        write(shifted(1e4 * low, monkeypatch), tmp_path, options(plain))


@pytest.mark.parametrize("method", ["color", "dual-lora"])
def test_one_expert(method: str, taught: Taught, plain: MakePlain, tmp_path: Path) -> None:
    with pytest.raises(NotMergeable, match=r"--task N \(1\.\.2\)"):
        export(taught(method), tmp_path / "out", "peft")
    shipped = export(taught(method), tmp_path / "out", "peft", task=2)
    assert shipped.facts["classes"] == ["cat", "dog"]
    base = stock("random:dinov2-tiny", tmp_path / "base").from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    pixels = options(one := plain(method, task=2)).pixel_values(one)
    with torch.no_grad():
        features = model(pixel_values=pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(features, one.backbone(pixels).pooled, atol=1e-5, rtol=0)
    assert len(load_file(tmp_path / "out" / "head.safetensors")["weight"]) == 2


def test_peft_finds_the_class_by_itself(tmp_path: Path) -> None:
    plain, out = made("lora"), tmp_path / "out"
    out.mkdir()
    write(plain, out, options(plain))
    expected = stock("random:dinov2-tiny", tmp_path / "base")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None  # the hub has no random weights
    (out / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "base")}))
    model = AutoPeftModel.from_pretrained(out)
    assert type(model.get_base_model()) is expected
    pixels = options(plain).pixel_values(plain)
    with torch.no_grad():
        found = model(pixel_values=pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(found, plain.backbone(pixels).pooled, atol=1e-5, rtol=0)


def test_the_check_looks_at_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(tensors: dict[str, Tensor], path: Path, **more: Any) -> None:
        save_file({name: 1.001 * tensor for name, tensor in tensors.items()}, path, **more)

    monkeypatch.setattr("sapwood.export.peft.save_file", spoiled)
    plain = made("lora")
    assert write(plain, tmp_path, options(plain)).max_difference > 1e-5


def test_what_cannot_be_held_is_refused(taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"the adapter none has not changed the backbone.*--to merged"):
        export(taught("ncm"), out, "peft")
    with pytest.raises(ConfigError, match=r"no layer's weight \(biases, norms, .*: rank \d+\).*--to merged"):
        export(taught("full-finetune"), out, "peft")
    plain = made("lora", "random:sam-tiny", 32)
    with pytest.raises(ConfigError, match=r"brought from 64 to 32 px.*tables of positions.*--to merged"):
        write(plain, tmp_path, options(plain))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SapwoodError, match=r"--to peft needs the extra: pip install 'sapwood\[export\]'"):
        write(made("lora"), tmp_path, options(plain))
    assert not out.exists()


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_a_packed_state_brings_its_own_backbone(
    to: str, picture_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the weights it was learned on are gone; what leaves is for those in its own folder."""
    save_backbone(create_backbone("random:dinov2-tiny"), weights := tmp_path / "weights")
    learner = Learner.create(tmp_path / "state", backbone=str(weights), method="seq-lora", image_size=28)
    learner.learn(picture_folder(["ant", "bee"], 4), training={"epochs": 2, "lr": 0.01})
    packed = pack(learner.state, tmp_path / "packed").path
    shutil.rmtree(weights)
    shutil.rmtree(learner.state.path)
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    made = export(packed, tmp_path / "out", to, accept_licence=True)
    assert made.max_difference <= 1e-5
    assert made.facts["backbone"]["name"] == str(weights)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    plain = Plain.open(State.open(packed))
    if to == "peft":
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(packed / "backbone"), made.path).eval()
    else:
        model = AutoModel.from_pretrained(made.path).eval()
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(tokens, plain.backbone(pixels).pooled, atol=1e-5, rtol=0)
