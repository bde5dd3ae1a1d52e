"""One ONNX file: the network with its labels and what it wants of a picture, checked by ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional as F

from sapwood.data.decode import decode
from sapwood.data.pictures import Picture
from sapwood.data.transforms import eval_view, normalise, resized
from sapwood.errors import ConfigError, NotMergeable, SapwoodError
from sapwood.export.compare import difference
from sapwood.export.onnx_dtype import Run, accuracy, eight_bit_words, eight_bits, half_weights, runner
from sapwood.export.onnx_graph import Graph, describe, metadata, trace
from sapwood.export.onnx_usage import usage
from sapwood.export.options import Check, Dtype, Format, Options
from sapwood.export.plain import Plain
from sapwood.export.views import HEADROOM
from sapwood.wording import counted

LIMIT = 1e-4
"""Between torch and ONNX Runtime in float32; the kernels add in other orders."""

_LIMITS: dict[Dtype, float] = {"fp32": LIMIT, "fp16": 0.05, "int8": 1.0}
NAME = "model.onnx"
_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ENLARGED = ((1.37, 1.0), (1.0, 1.83), (2.6, 2.2))  # height and width of pictures to try the preprocessing on


def write(plain: Plain, folder: Path, options: Options, *, any_size: bool = True) -> Check:
    """``model.onnx``, run by ONNX Runtime on the pictures to check on, at batches of 1, 3 and all.

    A network whose change depends on the picture goes along with its choice, which is part of the graph.

    Args:
        plain, folder, options: see ``Format``.
        any_size: try for a graph that takes pictures of any size; where it cannot be, the size is that of the view.

    Raises:
        ConfigError: a package is missing, the weights do not fit into one file.
        NotMergeable: the choice between rounds does not fit into a graph.
        SapwoodError: the exporter fails; ONNX Runtime answers differently in float32.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigError(f"--to onnx needs the extra: pip install 'sapwood[export]' (missing: {', '.join(missing)})")
    graph = Graph(plain, options.preprocessing).eval()
    notes: list[str] = []
    path = folder / NAME
    free = any_size and not options.preprocessing and not plain.backbone.info.fixed_size
    found = _exported(graph, options, path, any_size=True) if free else None
    if found is None:
        if not options.preprocessing:
            height, width = options.image_size
            notes.append(f"pictures are {height} x {width} pixels: the graph holds the positions of that size alone")
        found = _exported(graph, options, path, any_size=options.preprocessing)
        free = False
    if isinstance(found, Exception):
        raise _refusal(plain, found) from found
    assert found is not None  # that is for free sizes alone
    if not found <= LIMIT:
        raise SapwoodError(
            f"ONNX Runtime answers differently: by up to {found:.2g} on {options.views_from}, allowed is {LIMIT:.0e}; "
            "nothing was written"
        )
    facts: dict[str, Any] = {"any_size": free, "max_difference_fp32": found, "input": graph.input}
    if options.preprocessing:
        facts |= _preprocessing_facts(graph, path, options, notes)
    if options.dtype != "fp32":
        found = _shrink(graph, path, options, facts, notes)
    return Check(found, _LIMITS[options.dtype], tuple(notes), facts, usage(graph, options))


def _exported(graph: Graph, options: Options, path: Path, *, any_size: bool) -> float | Exception | None:
    """Largest difference of the file, or why there is none; None where another size does not work."""
    import onnx

    pads = any_size and not options.preprocessing
    sizes = "pictures of any size" if any_size else f"{options.image_size[0]} x {options.image_size[1]} pixels"
    options.progress.note(f"translating the network to ONNX, for {sizes}, and running it; it takes up to a minute")
    try:
        model = trace(graph, any_size=any_size)
        describe(model, metadata(graph, options, any_size=any_size))
        onnx.save(model, path)
        found = _differences(graph, runner(path), options, any_size=pads)
    except ConfigError:
        raise
    except Exception as error:  # torch, onnxscript and ONNX Runtime raise what they like
        return None if pads else error
    return None if pads and not found <= LIMIT else found


def _refusal(plain: Plain, error: Exception) -> SapwoodError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = _COLOURS.sub("", str(cause).strip() or type(cause).__name__).splitlines()[0]
    if plain.merged:
        return SapwoodError(f"torch's exporter fails on {plain.backbone.info.name} ({reason}); take --to merged")
    return NotMergeable(
        f"the choice that {plain.record['method']!r} makes for each picture does not fit into an ONNX graph "
        f"({reason}); export one round's part with --task N (1..{len(plain.record['tasks'])})"
    )


def _inputs(graph: Graph, views: Tensor) -> Tensor:
    """What the file takes, of plain views uint8 [B, H, W, 3]."""
    info = graph.plain.backbone.info
    return views if graph.preprocess is not None else normalise(views, info.mean, info.std)


@torch.no_grad()
def _differences(graph: Graph, run: Run, options: Options, *, any_size: bool) -> float:
    """Largest over batches of 1, 3 and all, and at another size where there is one."""
    views = options.views
    given = _inputs(graph, views)
    expected = _expected(graph, views)
    whole = run(given)
    found = [difference(whole, expected), difference(run(given[:1]), expected[:1])]
    found.append(difference(run(given[1:4]), expected[1:4]))
    if any_size:
        patch = graph.plain.backbone.info.patch
        height, width = options.image_size
        other = F.interpolate(given[:2], (height + patch, width + 2 * patch), mode="bilinear")
        found.append(difference(run(other), graph(other)))
    return max(found)


@torch.no_grad()
def _expected(graph: Graph, views: Tensor) -> Tensor:
    """What the network says of plain views, without the graph's own preprocessing."""
    info = graph.plain.backbone.info
    inside, graph.preprocess = graph.preprocess, None
    try:
        logits: Tensor = graph(normalise(views, info.mean, info.std))
        return logits
    finally:
        graph.preprocess = inside


def _preprocessing_facts(graph: Graph, path: Path, options: Options, notes: list[str]) -> dict[str, float]:
    """How far the preprocessing inside is from Pillow's, on larger pictures of other shapes."""
    assert graph.preprocess is not None
    run = runner(path)
    height, width = options.image_size
    levels, share, logits = 0.0, 0.0, 0.0
    for down, across in _ENLARGED:
        size = (round(height * down), round(width * across))
        pictures = [resized(view.numpy(), size, method=Resampling.LANCZOS) for view in options.views[:3]]
        views = [resized(each, (height, width)) if graph.maps else eval_view(each, height) for each in pictures]
        pillow = torch.stack([torch.from_numpy(view) for view in views])
        given = torch.stack([torch.from_numpy(each) for each in pictures])
        if not graph.maps:  # predicting reduces large pictures first, as it decodes them
            small = [decode(Picture("made up", each), shorter=round(height * HEADROOM)) for each in pictures]
            seen = torch.stack([torch.from_numpy(eval_view(each, height)) for each in small])
        away = (graph.preprocess.views(given).permute(0, 2, 3, 1) - pillow.float()).abs()
        levels, share = max(levels, float(away.max())), max(share, float((away > 0).double().mean()))
        if not graph.maps:
            logits = max(logits, difference(run(given), _expected(graph, seen)))
    notes.append(
        f"preprocessing inside: pixels within {levels:.0f} of 255 of Pillow's, {share:.2%} of them not equal"
        + ("" if graph.maps else f"; logits are within {logits:.1e} of sapwood's, which reduces pictures in two steps")
    )
    return {"resize_levels": levels, "resize_share": share, "resize_logits": logits}


def _shrink(graph: Graph, path: Path, options: Options, facts: dict[str, Any], notes: list[str]) -> float:
    """Replace the file by one of smaller weights; gives its largest difference."""
    import onnx

    options.progress.note(f"making the weights smaller ({options.dtype}), and running it again")
    whole = path.with_name("fp32.onnx")
    path.rename(whole)
    if options.dtype == "fp16":
        model = onnx.load(whole)
        half_weights(model)
    else:
        eight_bits(whole, path, convolutions=graph.plain.backbone.info.family == "resnet")
        model = onnx.load(path)
        notes.append(eight_bit_words(model))
    describe(model, metadata(graph, options, any_size=bool(facts["any_size"] or options.preprocessing)))
    onnx.save(model, path)
    before, after = runner(whole), runner(path)
    given = _inputs(graph, options.views)
    one, two = before(given), after(given)
    if graph.maps:
        facts["max_difference_scores"] = moved = float((one.argmax(1) != two.argmax(1)).double().mean())
        words = f"{moved:.2%} of the pixels change class"
    else:
        facts["max_difference_scores"] = moved = float((one.softmax(1) - two.softmax(1)).abs().max())
        words = f"scores move by up to {moved:.2g}"
    sizes = whole.stat().st_size, path.stat().st_size
    facts["bytes_of_fp32"] = sizes[1] / sizes[0]
    notes.append(f"{options.dtype}: {sizes[1] / sizes[0]:.0%} of the bytes of fp32; {words} on {options.views_from}")
    if options.labelled is not None:
        prepare: Callable[[Tensor], Tensor] = partial(_inputs, graph)
        facts["accuracy_fp32"] = accuracy(before, options.labelled, prepare)
        facts[f"accuracy_{options.dtype}"] = accuracy(after, options.labelled, prepare)
        what = "pixels" if graph.maps else "pictures"
        of = f"{counted(len(options.labelled.views), 'picture')} of {options.labelled.source}"
        notes.append(
            f"accuracy on {of} (of {what}): fp32 "
            f"{100 * facts['accuracy_fp32']:.1f} %, {options.dtype} {100 * facts[f'accuracy_{options.dtype}']:.1f} %"
        )
    whole.unlink()
    return difference(two, _expected(graph, options.views))


ONNX = Format(
    "one ONNX file, its labels inside; fp32, fp16 or int8",
    write,
    suffix=".onnx",
    takes=frozenset({"dtype", "preprocessing"}),
)
