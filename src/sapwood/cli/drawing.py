"""Masks on the command line: files that ``predict`` writes, tables that ``evaluate`` prints, and ``sapwood masks``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapwood.cli.screen import listening, percent, table
from sapwood.errors import ConfigError
from sapwood.wording import counted

if TYPE_CHECKING:
    from sapwood.mask_evaluation import MaskEvaluation, MaskPrediction


def masks(
    source: Annotated[
        Path,
        typer.Argument(metavar="FROM", help="COCO's JSON file, or a folder of labelme files.", show_default=False),
    ],
    target: Annotated[Path, typer.Argument(metavar="TO", help="A folder to be made.", show_default=False)],
) -> None:
    """Turn polygons (COCO, labelme) into a folder of pictures and masks that `learn` takes."""
    from sapwood.data.polygons import convert

    with listening() as progress:
        progress.start("drawing masks", 0)
        made = convert(source, target, progress=lambda done, total: progress.advance(1))
        progress.finish()
    classes = counted(len(made.classes), "class", "classes")
    print(f"{counted(made.pictures, 'picture')} with masks of {classes} in {target}")


def prepare_folders(*folders: Path | None) -> tuple[Path | None, ...]:
    """Make folders to write to, before anything is computed; no two may be one."""
    given = [folder.resolve() for folder in folders if folder is not None]
    if len(set(given)) < len(given):
        raise ConfigError(f"--out and --overlay both name {given[0]}; give each a folder of its own")
    for folder in folders:
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error
    return folders


def write_predictions(
    answers: Iterable[MaskPrediction], out: Path | None, overlays: Path | None
) -> list[dict[str, Any]]:
    """Write masks and overlays as they come: what ``predict --json`` lists, one entry a picture."""
    from sapwood.data.palette import overlay, write_drawn, write_mask

    listed: list[dict[str, Any]] = []
    taken: set[str] = set()
    for answer in answers:
        name = _free_name(Path(answer.path).stem or "picture", taken)
        if out is not None:
            write_mask(_own(out / f"{name}.png"), answer.mask, drawn=True)
        if overlays is not None:
            write_drawn(_own(overlays / f"{name}.png"), overlay(answer.image, answer.mask))
        written = str(out / f"{name}.png") if out is not None else None
        listed.append({"path": answer.path, "mask": written, "classes": answer.shares})
    return listed


def _own(path: Path) -> Path:
    """A place for a drawn file; what stands there may be replaced only if it was drawn too.

    Raises:
        ConfigError: it is somebody's picture or mask.
    """
    from sapwood.data.palette import was_drawn

    if path.exists() and not was_drawn(path):
        raise ConfigError(f"{path} was not written by predict and would be lost; name another folder")
    return path


def _free_name(stem: str, taken: set[str]) -> str:
    """The stem, or the stem and a number where two pictures share it."""
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name


def evaluation_lines(measured: MaskEvaluation) -> list[str]:
    """The measure for people."""
    from sapwood.mask_evaluation import mean_of

    alone = mean_of(measured.per_class.values())
    whole = mean_of((measured.background, *measured.per_class.values()))
    of = f"{counted(measured.images, 'picture')}, {counted(measured.pixels, 'pixel')} (version {measured.version})"
    lines = [
        f"mIoU {percent(whole)} % with the background, {percent(alone)} % without; over {of}",
        "",
    ]
    rows = [["part", "IoU, %"]]
    for name, value in (("old", measured.old), ("new", measured.new), ("background", measured.background)):
        rows.append([name, percent(value)])
    truth = {name: sum(row) for name, row in zip(measured.classes, measured.confusion, strict=True)}
    classes = [["class", "IoU, %", "pixels"]]
    classes += [[name, percent(value), f"{truth[name]:,}"] for name, value in measured.per_class.items()]
    return [*lines, table(rows, right=[1]), "", table(classes, right=[1, 2])]
