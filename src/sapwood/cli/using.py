"""``sapwood predict`` and ``sapwood evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapwood.cli.drawing import evaluation_lines, prepare_folders, write_predictions
from sapwood.cli.options import AsJson, Device, Labelled, SkipBad, StateFolder, Tile, check_device
from sapwood.cli.screen import listening, percent, print_json, table
from sapwood.data.names import shown
from sapwood.errors import ConfigError
from sapwood.wording import counted

if TYPE_CHECKING:
    from sapwood.learner import Learner
    from sapwood.progress import Progress

_TOP = 5
_NOT_SAID = "whether pictures are of classes that were never learned cannot be said yet"


@contextmanager
def _opened(state: Path, device: str | None) -> Iterator[tuple[Learner, Progress]]:
    from sapwood.learner import Learner

    check_device(device)
    with listening() as progress:
        yield Learner.open(state, device=device), progress


def _only_for_masks(learner: Learner, **given: Any) -> None:
    wrong = [f"--{name}" for name, value in given.items() if value]
    if wrong and learner.kind.name != "segmentation":
        raise ConfigError(f"{', '.join(wrong)}: only for states that draw masks; this one names pictures")


def predict(
    state: StateFolder,
    pictures: Annotated[
        list[str], typer.Argument(metavar="IMAGE|FOLDER...", help="Files and folders.", show_default=False)
    ],
    top: Annotated[
        int | None, typer.Option(min=1, metavar="K", help=f"List the best K classes; --json lists {_TOP} if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write masks there, as palette PNG.")] = None,
    overlay: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the pictures with their masks laid over them there.")
    ] = None,
    tile: Tile = False,
    as_json: AsJson = False,
    skip_bad: SkipBad = False,
    device: Device = None,
) -> None:
    """Name the class of each picture, or draw its mask."""
    with _opened(state, device) as (learner, progress):
        masks = learner.kind.name == "segmentation"
        _only_for_masks(learner, out=out, overlay=overlay, tile=tile)
        if masks and top is not None:
            raise ConfigError("--top: a mask has one class for each pixel; leave it out")
        folders = prepare_folders(out, overlay)
        answers = learner.iter_predict(
            pictures, top=top or (_TOP if as_json else 1), tile=tile, skip_bad=skip_bad, progress=progress
        )
        predictions = write_predictions(answers, *folders) if masks else [_named(answer) for answer in answers]
        values = {name: value for value, name in enumerate(learner.classes_)}
        if not masks and any(row["known"] is None for row in predictions):
            from sapwood.functional.openset import LEAST

            progress.note(f"{_NOT_SAID}: that takes {LEAST} pictures held out of training")
        if masks and out is not None:
            progress.note(f"values in the masks: {', '.join(f'{value} {name}' for name, value in values.items())}")
    if as_json:
        more = {"values": values} if masks else _calibrated(learner)
        print_json({"version": learner.state.version.id, **more, "predictions": predictions})
    elif masks:
        print(table([[shown(row["path"]), shown(row["mask"] or ""), _shares(row["classes"])] for row in predictions]))
    else:
        print(table([_row(prediction) for prediction in predictions]))


def _calibrated(learner: Learner) -> dict[str, bool]:
    from sapwood.evaluation import is_calibrated

    return {"calibrated": is_calibrated(learner.network)} if learner.kind.knows_unknown else {}


def _named(answer: Any) -> dict[str, Any]:
    return {
        "path": answer.path,
        "class": answer.label,
        "score": answer.score,
        "known": answer.known,
        "top": [{"class": label, "score": score} for label, score in answer.top],
    }


def _row(prediction: dict[str, Any]) -> list[str]:
    best = [cell for entry in prediction["top"] for cell in (entry["class"], f"{entry['score']:.3f}")]
    return [shown(prediction["path"]), *best, "unknown" if prediction["known"] is False else ""]


def _shares(classes: dict[str, float]) -> str:
    return ", ".join(f"{name} {percent(share)} %" for name, share in classes.items())


def evaluate(
    state: StateFolder,
    data: Labelled,
    record: Annotated[
        bool, typer.Option("--record", help="Fill the last row of the state's matrix with the result.")
    ] = False,
    unknown: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Pictures of other classes: how many are taken for known ones?"),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(
            metavar="include|old|exclude",
            help="Masks: the background counts in the mean (include, the default), in the old classes too, or not.",
        ),
    ] = None,
    future: Annotated[
        str | None,
        typer.Option(metavar="ignore|background", help="Masks: pixels of classes not known yet; ignored by default."),
    ] = None,
    crop: Annotated[bool, typer.Option("--crop", help="Masks: measure each picture's central square only.")] = False,
    tile: Tile = False,
    as_json: AsJson = False,
    skip_bad: SkipBad = False,
    device: Device = None,
) -> None:
    """Measure on labelled pictures of known classes."""
    from sapwood.measuring import measure

    with _opened(state, device) as (learner, progress):
        _only_for_masks(learner, background=background, future=future, crop=crop, tile=tile)
        options = None
        if learner.kind.name == "segmentation":
            from sapwood.mask_evaluation import MaskOptions

            options = MaskOptions(background or "include", future or "ignore", crop, tile)  # type: ignore[arg-type]
        measured = measure(
            learner, data, record=record, unknown=unknown, options=options, skip_bad=skip_bad, progress=progress
        )
    if as_json:
        print_json(measured.as_json())
    elif options is not None:
        print("\n".join(evaluation_lines(measured)))
    else:
        of = counted(measured.images, "picture")
        print(f"{percent(measured.accuracy)} % of {of} right (version {measured.version})")
        print("\n".join(_sureness(measured)))
        rows = [["round", "%"], *([name, percent(share)] for name, share in measured.per_task.items())]
        print(f"\n{table(rows, right=[1])}")
        from sapwood.functional.confusion import row_sums

        counts = dict(zip(measured.classes, row_sums(measured.counts).tolist(), strict=True))
        rows = [["class", "%", "pictures"]]
        rows += [[name, percent(share), str(counts[name])] for name, share in measured.per_class.items()]
        print(f"\n{table(rows, right=[1, 2])}")
        if measured.top_confusions:
            rows = [["true", "called", "pictures", "%"]]
            for pair in measured.top_confusions[:_TOP]:
                rows.append([pair["true"], pair["predicted"], str(pair["count"]), percent(pair["share"])])
            print(f"\n{table(rows, right=[2, 3])}")


def _sureness(measured: Any) -> list[str]:
    lines = [f"{percent(measured.balanced_accuracy)} % on average over the classes"]
    if measured.ece is not None:
        doubt = "" if measured.calibrated else " (nothing was held out to calibrate them on)"
        lines.append(f"scores are {percent(measured.ece)} points off on average{doubt}")
    if measured.accepted is not None:
        lines.append(f"{percent(measured.accepted)} % of them taken for known")
    if measured.unknown_images:
        told = "cannot be said" if measured.false_accept is None else f"{percent(measured.false_accept)} %"
        lines.append(f"of {counted(measured.unknown_images, 'picture')} of other classes taken for known: {told}")
    return lines
