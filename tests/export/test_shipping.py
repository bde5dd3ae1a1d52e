"""What goes before and after a format: refusals, replacing, atomic placing, a failed check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from sapwood.data.decode import decode
from sapwood.data.sources import read_data
from sapwood.errors import ConfigError, DataError, SapwoodError, StateError, UnknownName
from sapwood.export import Check, Format, Options, Plain, Shipped, export, restricted
from sapwood.learner import Learner
from sapwood.registry import Registry

Taught = Callable[..., Path]


def writing(difference: float = 0.0, suffix: str | None = None) -> Format:
    """A format that writes one file."""

    def write(plain: Plain, folder: Path, options: Options) -> Check:
        (folder / f"weights{suffix or '.bin'}").write_bytes(b"weights")
        return Check(difference, 1e-5, ("a note",))

    return Format("bytes", write, suffix)


def ship(state: Path, out: Path, name: str, form: Format, **options: Any) -> Shipped:
    """``export`` to a format that is there for this once."""
    formats: Registry[Format] = Registry("format", "formats")
    formats.add(name, form)
    with patch("sapwood.export.shipping.FORMATS", formats):
        return export(state, out, name, **options)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("difference", [2e-5, float("nan"), float("inf")])
def test_another_answer_writes_nothing(difference: float, taught: Taught, tmp_path: Path) -> None:
    with pytest.raises(SapwoodError, match=r"answers differently: .* nothing was written"):
        ship(taught("ncm"), tmp_path / "out", "bytes", writing(difference))
    assert list(tmp_path.glob("*out*")) == []


def test_a_format_that_breaks_leaves_nothing(taught: Taught, tmp_path: Path) -> None:
    def write(plain: Plain, folder: Path, options: Options) -> Check:
        (folder / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = export(taught("ncm"), tmp_path / "out")
    kept = listing(tmp_path / "out")
    with pytest.raises(SapwoodError, match="No space left on device"):
        ship(taught("ncm"), tmp_path / "out", "bytes", Format("bytes", write), force=True)
    assert listing(tmp_path / "out") == kept
    assert list(tmp_path.glob(".*out*")) == []
    assert before.bytes == sum(len(content) for content in kept.values())


def test_replaces_only_what_an_export_made(taught: Taught, tmp_path: Path) -> None:
    state, out = taught("ncm"), tmp_path / "out"
    ship(state, out, "bytes", writing())
    (out / "left").write_text("of the first")
    with pytest.raises(ConfigError, match=r"is there already; name another place, or replace it with --force"):
        ship(state, out, "bytes", writing())
    ship(state, out, "bytes", writing(), force=True)
    assert sorted(listing(out)) == ["README.md", "sapwood-export.json", "weights.bin"]
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    link = tmp_path / "link"
    link.symlink_to(out)
    for place in (foreign, foreign / "thesis.txt", link, state):
        with pytest.raises(ConfigError, match=r"was not made by an export|lies in the state"):
            ship(state, place, "bytes", writing(), force=True)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match="lies in the state"):
        ship(state, state / "versions" / "out", "bytes", writing())
    with pytest.raises(ConfigError, match="there is no folder"):
        ship(state, tmp_path / "no" / "out", "bytes", writing())


def test_one_file_and_its_card(taught: Taught, tmp_path: Path) -> None:
    state, out = taught("ncm"), tmp_path / "my.onnx"
    form = writing(suffix=".onnx")
    ship(state, out, "onnx", form)
    assert out.read_bytes() == b"weights"
    assert "licence of its weights" in (tmp_path / "my.md").read_text()
    ship(state, out, "onnx", form, force=True)
    (tmp_path / "other.md").write_text("notes of mine")
    with pytest.raises(ConfigError, match=r"other\.md was not made by an export"):
        ship(state, tmp_path / "other.onnx", "onnx", form, force=True)
    ship(state, tmp_path / "folder", "onnx", form)
    assert (tmp_path / "folder" / "weights.onnx").is_file()
    with pytest.raises(ConfigError, match="this format is a folder"):
        ship(state, tmp_path / "x.onnx", "bytes", writing())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_facts_beside_the_weights(taught: Taught, tmp_path: Path) -> None:
    state = taught("ncm")
    made = export(state, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "sapwood-export.json").read_text())
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1  # the weights can be read by all
    learner = Learner.open(state, device="cpu")
    assert facts == made.as_json()["facts"]
    assert facts["format"] == "merged"
    assert facts["version"] == learner.state.version.id
    assert facts["classes"] == ["ant", "bee", "cat", "dog"]
    assert facts["image_size"] == [28, 28]
    assert facts["temperature"] == learner.network.head.temperature
    assert facts["backbone"]["sha256"] == learner.record["backbone"]["sha256"]
    assert facts["preprocessing"]["mean"] == [0.485, 0.456, 0.406]


def test_options_that_a_format_has_not(taught: Taught, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--dtype, --with-preprocessing: not with --to merged"):
        export(taught("ncm"), tmp_path / "out", dtype="int8", preprocessing=True)
    with pytest.raises(ConfigError, match="none of fp32, fp16, int8"):
        export(taught("ncm"), tmp_path / "out", dtype="fp8")
    with pytest.raises(UnknownName, match=r"Did you mean 'merged'\?"):
        export(taught("ncm"), tmp_path / "out", "mergd")
    with pytest.raises(StateError, match="no such state folder"):
        export(tmp_path / "nowhere", tmp_path / "out")


def test_nothing_learned_yet(tmp_path: Path) -> None:
    Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ncm", kind="classification")
    with pytest.raises(ConfigError, match="has learned nothing yet; run: sapwood learn"):
        export(tmp_path / "state", tmp_path / "out")


def test_checked_on_given_pictures(
    taught: Taught, rounds: Callable[[str], tuple[Path, ...]], tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    made = export(taught("ncm"), tmp_path / "out", data=rounds("classification")[2])
    assert made.checked_on == f"8 pictures of {rounds('classification')[2]}"
    held = [(decode(picture), picture.label) for picture in read_data(rounds("classification")[2])]
    assert export(taught("ncm"), tmp_path / "held", data=held).checked_on == "8 pictures of the pictures given"
    held[0] = (held[0][0], "eel")
    with pytest.raises(
        DataError, match=r"^the pictures given: class 'eel' is not among those exported: \w+, \w+[\w, ]*$"
    ):
        export(taught("ncm"), tmp_path / "other", data=held)
    masks = export(taught("clora+mib", "segmentation"), tmp_path / "masks", data=rounds("segmentation")[2])
    assert masks.checked_on.startswith("4 pictures of ")
    with pytest.raises(DataError, match=r"class 'eel' is not among those exported"):
        export(taught("ncm"), tmp_path / "third", data=picture_folder(["eel"], 2, name="eels"))


def test_a_licence_that_restricts_is_read_first(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not restricted("none (random weights)")
    restrictive = "NVIDIA Source Code License for SegFormer (non-commercial)"
    assert restricted(restrictive)
    monkeypatch.setattr("sapwood.export.shipping.restricted", lambda licence: "random" in licence)
    with pytest.raises(ConfigError, match=r"licence 'none \(random weights\)'.*add --accept-licence"):
        export(taught("ncm"), tmp_path / "out")
    export(taught("ncm"), tmp_path / "out", accept_licence=True)
