"""``sapwood export``: what was learned, in a form that other tools open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sapwood.cli.options import AsJson, StateFolder
from sapwood.cli.screen import listening, print_json, size
from sapwood.data.names import shown
from sapwood.wording import counted


def export(
    state: StateFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder or file to write.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="merged|onnx|peft",
            help="merged: a folder of transformers; onnx: one file for ONNX Runtime; peft: an adapter for PEFT.",
        ),
    ] = "merged",
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier export left at OUT.")] = False,
    task: Annotated[
        int | None,
        typer.Option(
            "--task", min=1, metavar="N", help="One round's expert alone, of a method that chooses between rounds."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="fp32|fp16|int8", help="Of the weights in an ONNX file.")
    ] = "fp32",
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="ONNX: resize and normalisation inside the file.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Labelled pictures to check on; made-up ones otherwise."),
    ] = None,
    accept_licence: Annotated[
        bool,
        typer.Option("--accept-licence", help="You have read the backbone's licence, which is unknown or restricted."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write what was learned so that other tools open it, and check that they give the same answers."""
    from sapwood.export import export as ship

    with listening() as progress:
        made = ship(
            state,
            out,
            to,
            force=force,
            task=task,
            dtype=dtype,
            preprocessing=with_preprocessing,
            data=data,
            accept_licence=accept_licence,
            progress=progress,
        )
    if as_json:
        print_json(made.as_json())
        return
    print("\n".join(_lines(made)))


def _lines(made: Any) -> list[str]:
    count = counted(len(made.facts["classes"]), "class", "classes")
    return [
        f"{shown(made.path)}: {made.format} of version {made.version}, {count}, {size(made.bytes)}",
        f"answers differ by {made.max_difference:.2g} at most on {shown(made.checked_on)} (allowed {made.limit:.0e})",
        *(f"note: {shown(note)}" for note in made.notes),
        f"how to use it: {shown(made.card)}",
    ]
