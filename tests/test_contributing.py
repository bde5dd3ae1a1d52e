"""What CONTRIBUTING.md shows works as it stands there: an adapter from somebody else's package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    return next(text for text in blocks if containing in text)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder for sys.path with the example as an installed package, as pip would leave it."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    (tmp_path / "my_package" / "shift.py").write_text(block("python", "class Shift(Adapter)"))
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    group, line = re.search(
        r'entry-points\."(sapwood\.adapters)"\]\n(shift = "[^"]+")', block("toml", "entry-points")
    ).groups()
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n")
    return tmp_path


def test_the_example_adapter_is_found_by_name_and_computes(elsewhere: Path) -> None:
    code = """
import torch
from sapwood.adapters import ADAPTERS, Context
from sapwood.backbones import create_backbone
from sapwood.errors import NotMergeable
from sapwood.methods import find_method

backbone = create_backbone("random:vit-tiny")
adapter_class = ADAPTERS[find_method("shift+finetune").adapter]
adapter = adapter_class(adapter_class.Config(), backbone.sites, backbone.info)
site = adapter.sites[0]
with torch.no_grad():
    next(iter(adapter.parameters())).fill_(2.0)
change = adapter(site, torch.zeros(3, 5, site.inputs), Context())
print(adapter_class.__module__, tuple(change.shape) == (3, 5, site.outputs), change.unique().tolist())
try:
    adapter.dense(site)
except NotMergeable as error:
    print(error)
"""
    path = os.pathsep.join([str(elsewhere), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    first, second = done.stdout.splitlines() or ["", done.stderr]
    assert first == "my_package.shift True [2.0]", second
    assert "'shift' changes the bias" in second


def test_every_registry_is_open_to_other_packages() -> None:
    groups = set(re.findall(r'entry-points\."sapwood\.(\w+)"', TEXT))
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    registries = set(
        re.findall(r'^[A-Z]+(?:: Registry\[.+\])? = Registry(?:\[.+\])?\("\w+", "(\w+)"\)', source, re.MULTILINE)
    )
    assert {"backbones", "adapters", "heads", "objectives", "methods"} <= groups
    assert groups <= registries
