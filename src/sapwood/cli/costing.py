"""``sapwood cost``: parameters, operations, bytes and NetScore, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapwood.cli.options import AsJson, read_size
from sapwood.cli.screen import print_json, size, table
from sapwood.errors import ConfigError

if TYPE_CHECKING:
    from sapwood.costs import Cost


def cost(
    state: Annotated[Path | None, typer.Argument(metavar="STATE", help="A state folder.", show_default=False)] = None,
    backbone: Annotated[str | None, typer.Option(help="Instead of a state: CLoRA on this backbone.")] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="SIDE|HEIGHTxWIDTH", help="Pixels of a picture; by default the backbone's.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Of the LoRA on q and v, or 3x3 convolutions, of every block; by default 16.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Channels, with the background; by default 21.")] = None,
    decoder: Annotated[str | None, typer.Option(help="conv1x1 (default), conv3x3, aspp or none.")] = None,
    accuracy: Annotated[float | None, typer.Option(help="In per cent, for NetScore: accuracy or mIoU.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count parameters, operations and stored bytes of a state, or of CLoRA on a backbone.

    Nothing is downloaded: shapes are enough, on any machine, in seconds.
    """
    planned = {"--image-size": image_size, "--rank": rank, "--classes": classes, "--decoder": decoder}
    if (state is None) == (backbone is None):
        raise ConfigError("name a state folder or --backbone, one of them, e.g. --backbone sam-vit-large")
    given = {name: value for name, value in planned.items() if value is not None}
    if state is not None and given:
        raise ConfigError(f"{state} has its own size, rank, classes and decoder; leave {', '.join(given)} out")
    if accuracy is not None and not 0 <= accuracy <= 100:
        raise ConfigError(f"--accuracy is in per cent, 0..100, got {accuracy:g}")
    pixels = read_size(image_size)

    from sapwood.costs import clora_cost, state_cost

    if backbone is not None:
        shape: dict[str, Any] = {"rank": rank, "classes": classes, "decoder": decoder}
        chosen = {name: value for name, value in shape.items() if value is not None}
        counted, title = clora_cost(backbone, pixels, **chosen), f"CLoRA on {backbone}"
    else:
        assert state is not None
        counted, title = state_cost(state), f"{state} after its last round"
    if as_json:
        print_json(describe(counted, accuracy))
    else:
        print(summary(counted, title, accuracy))


def describe(counted: Cost, accuracy: float | None) -> dict[str, int | float | None]:
    """What ``sapwood cost --json`` prints."""
    return {
        "parameters": counted.parameters,
        "trainable_parameters": counted.trainable_parameters,
        "gmacs": counted.gmacs,
        "gmacs_merged": counted.gmacs_merged,
        "bytes_per_task": counted.bytes_per_task,
        "netscore": counted.netscore(accuracy),
    }


def summary(counted: Cost, title: str, accuracy: float | None) -> str:
    """The same for people, with the parts of the sums."""
    merged = "the adapter cannot be merged"
    if counted.gmacs_merged is not None:
        merged = f"with the adapter beside the weights; {counted.gmacs_merged:,.3f} with it merged"
    rows = [
        ["parameters", f"{counted.parameters:,}", _parts(counted.network)],
        ["trained or solved", f"{counted.trainable_parameters:,}", _parts(counted.fitted)],
        ["GMACs", f"{counted.gmacs:,.3f}", merged],
        ["stored a task", size(counted.bytes_per_task), "tensors of a round in the state folder"],
    ]
    if accuracy is not None:
        score = counted.netscore(accuracy)
        said = f"at {accuracy:g} %: 20 log10(accuracy² / sqrt(trained or solved in millions · GMACs))"
        rows.append(["NetScore", "–" if score is None else f"{score:.2f}", said])
    height, width = counted.size
    return f"{title}, one picture of {height} x {width} px\n\n{table(rows, right=[1])}"


def _parts(parts: Mapping[str, int]) -> str:
    return " + ".join(f"{name} {count / 1e6:.3f} M" for name, count in parts.items() if count) or "nothing is fitted"
