"""``sapwood pack``: a state with its backbone, for a machine without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapwood.cli.options import AsJson, StateFolder
from sapwood.cli.screen import listening, print_json, size


def pack(
    state: StateFolder,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder that is not there, or empty.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Copy the current version together with its backbone, for machines without a network.

    OUT is a state like any other: it predicts, learns and exports, and nothing is downloaded.
    """
    from sapwood.packing import pack as write
    from sapwood.state import State

    with listening() as progress:
        done = write(State.open(state), out, progress=progress)
    if as_json:
        print_json(
            {
                "path": str(done.path),
                "version": done.version,
                "state_bytes": done.state_bytes,
                "backbone_bytes": done.backbone_bytes,
                "backbone_licence": done.licence,
            }
        )
    else:
        print(
            f"{out} holds version {done.version} ({size(done.state_bytes)}) and its backbone "
            f"({size(done.backbone_bytes)}, licence of the weights: {done.licence})"
        )
