"""The model card: what leaves, how to load it, how well it knows its classes, what it cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sapwood.export.options import Check, Format
from sapwood.export.plain import Plain
from sapwood.record import matrix_remarks, measured_rounds
from sapwood.wording import counted

_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~$])")
_KNOWN_LICENCES = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0"})
_SOURCES = {"test": "test pictures", "validation": "validation pictures", "probe": "kept probe pictures"}


def preprocessing_facts(plain: Plain) -> dict[str, Any]:
    """How a picture becomes the network's input, as JSON."""
    height, width = plain.image_size
    info = plain.backbone.info
    if plain.kind == "segmentation":
        resize = "stretched"
        rule = f"the whole picture resized to {height} x {width} (height x width), bicubic with antialiasing"
    else:
        resize = "shorter side, then central square"
        rule = f"the shorter side resized to {height} (bicubic with antialiasing), then the central {height} x {width}"
    return {
        "resize": resize,
        "size": [height, width],
        "interpolation": "bicubic, antialiased",
        "scale": 1 / 255,
        "mean": list(info.mean),
        "std": list(info.std),
        "layout": "RGB, [B, 3, H, W] float32",
        "rule": f"RGB; {rule}; (pixel / 255 - mean) / std",
    }


def plain_text(text: object) -> str:
    r"""A name as Markdown that shows it and does nothing else.

    >>> plain_text("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def card(name: str, form: Format, plain: Plain, facts: Mapping[str, Any], check: Check) -> str:
    """README.md of an export, Markdown with the header that model hubs read."""
    record, info = plain.record, plain.backbone.info
    task = f", the expert of round {plain.task} alone" if plain.task is not None else ""
    count, rounds = counted(len(plain.classes), "class", "classes"), counted(len(record["tasks"]), "round")
    what = "draws masks of" if plain.kind == "segmentation" else "names pictures by"
    sections = [
        f"# {plain_text(info.name)} with {count}",
        f"A network that {what} {count}, learned in {rounds} by the method `{record['method']}`{task}. "
        f"Format: {form.summary}.",
        f"## How to load it\n\n{check.usage}" if check.usage else "",
        f"## Classes\n\n{_classes(plain)}",
        f"## Preprocessing\n\n{facts['preprocessing']['rule']}.\n\n{_numbers(facts['preprocessing'])}",
        f"## Rounds\n\n{_rounds(record)}",
        f"## Accuracy\n\n{_accuracy(record)}",
        f"## How it was checked\n\n{_checked(facts, check)}",
        f"## Origin\n\n{_origin(plain, facts)}",
    ]
    return "\n\n".join([_header(plain), *filter(None, sections)]) + "\n"


def _header(plain: Plain) -> str:
    licence = plain.backbone.info.licence.lower()
    known = licence in _KNOWN_LICENCES
    return "\n".join(
        [
            "---",
            f"license: {licence if known else 'other'}",
            f"pipeline_tag: image-{plain.kind}",
            "tags:",
            "- sapwood",
            "---",
        ]
    )


def _classes(plain: Plain) -> str:
    found = "In the order of the logits' channels: "
    return found + ", ".join(f"{channel} {plain_text(name)}" for channel, name in enumerate(plain.classes)) + "."


def _numbers(rule: Mapping[str, Any]) -> str:
    rows = [("mean", rule["mean"]), ("std", rule["std"]), ("size (height, width)", rule["size"])]
    return table(["", "value"], [(what, ", ".join(f"{value:g}" for value in values)) for what, values in rows])


def _rounds(record: Mapping[str, Any]) -> str:
    head = ["round", "pictures", "new classes", "training, s", "trained parameters", "a picture, ms", "peak memory, MB"]
    rows = []
    for task in record["tasks"]:
        peak = task.get("peak_memory")
        rows.append(
            (
                plain_text(task["name"]),
                task["images"],
                plain_text(", ".join(task["classes"])) or "–",
                f"{task['seconds']:.1f}",
                f"{task['trainable_parameters']:,}",
                f"{1000 * task['seconds_per_picture']:.1f}",
                f"{peak / 1e6:.0f}" if peak else "–",
            )
        )
    return table(head, rows)


def _accuracy(record: Mapping[str, Any]) -> str:
    """The matrix, of which the cells that were measured are shown."""
    names, columns = [task["name"] for task in record["tasks"]], measured_rounds(record)
    rows = []
    for name, row, source in zip(names, record["accuracy"], record["accuracy_on"], strict=True):
        if any(cell is not None for cell in row):
            cells = ["" if on >= len(row) else "–" if row[on] is None else f"{100 * row[on]:.1f}" for on in columns]
            rows.append((f"after {plain_text(name)}", *cells, _SOURCES.get(source, plain_text(source))))
    if not rows:
        return "Nothing was measured."
    what = "Accuracy" if record["kind"] == "classification" else "Mean IoU"
    head = ["", *(plain_text(names[on]) for on in columns), "measured on"]
    text = f"{what} on each round's classes, per cent; a dash where nothing was measured.\n\n{table(head, rows)}"
    return "\n\n".join([text, *map(plain_text, matrix_remarks(record))])


def _checked(facts: Mapping[str, Any], check: Check) -> str:
    lines = [
        f"Opened again and compared with the network it was made of on {plain_text(facts['checked_on'])}: the answers "
        f"differ by {check.max_difference:.2g} at most (allowed {check.limit:.0e})."
    ]
    return "\n".join([*lines, *(f"- {plain_text(note)}" for note in check.notes)])


def _origin(plain: Plain, facts: Mapping[str, Any]) -> str:
    info = plain.backbone.info
    rows = [
        ("backbone", plain_text(info.name)),
        ("revision", plain_text(info.revision)),
        ("sha256 of its weights", f"`{info.sha256}`"),
        ("licence of its weights", plain_text(info.licence)),
        ("version of the state", f"`{plain.version}`"),
        ("sapwood", facts["sapwood"]),
    ]
    return table(["", ""], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
