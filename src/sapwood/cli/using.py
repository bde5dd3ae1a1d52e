"""``sapwood predict`` and ``sapwood evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from sapwood.cli.options import AsJson, Device, Labelled, SkipBad, StateFolder, check_device
from sapwood.cli.screen import listening, percent, print_json, table
from sapwood.data.names import shown

_TOP = 5


def predict(
    state: StateFolder,
    pictures: Annotated[
        list[str], typer.Argument(metavar="IMAGE|FOLDER...", help="Files and folders.", show_default=False)
    ],
    top: Annotated[
        int | None, typer.Option(min=1, metavar="K", help=f"List the best K classes; --json lists {_TOP} if left out.")
    ] = None,
    as_json: AsJson = False,
    skip_bad: SkipBad = False,
    device: Device = None,
) -> None:
    """Name the class of each picture."""
    from sapwood.learner import Learner

    check_device(device)
    with listening() as progress:
        learner = Learner.open(state, device=device)
        answers = learner.predict(pictures, top=top or (_TOP if as_json else 1), skip_bad=skip_bad, progress=progress)
    if as_json:
        predictions = [
            {
                "path": answer.path,
                "class": answer.label,
                "score": answer.score,
                "top": [{"class": label, "score": score} for label, score in answer.top],
            }
            for answer in answers
        ]
        print_json({"version": learner.state.version.id, "predictions": predictions})
        return
    rows = [
        [shown(answer.path), *(cell for label, score in answer.top for cell in (label, f"{score:.3f}"))]
        for answer in answers
    ]
    print(table(rows))


def evaluate(
    state: StateFolder,
    data: Labelled,
    record: Annotated[
        bool, typer.Option("--record", help="Fill the last row of the state's accuracy matrix with the result.")
    ] = False,
    as_json: AsJson = False,
    skip_bad: SkipBad = False,
    device: Device = None,
) -> None:
    """Measure on labelled pictures of known classes."""
    from sapwood.learner import Learner

    check_device(device)
    with listening() as progress:
        learner = Learner.open(state, device=device)
        measured = learner.evaluate(data, record=record, skip_bad=skip_bad, progress=progress)
    if as_json:
        print_json(measured.as_json())
        return
    print(f"{percent(measured.accuracy)} % of {measured.images} pictures right (version {measured.version})")
    rows = [["round", "%"], *([name, percent(share)] for name, share in measured.per_task.items())]
    print(f"\n{table(rows, right=[1])}")
    counts = {name: sum(row) for name, row in zip(measured.classes, measured.confusion, strict=True)}
    rows = [["class", "%", "pictures"]]
    rows += [[name, percent(share), str(counts[name])] for name, share in measured.per_class.items()]
    print(f"\n{table(rows, right=[1, 2])}")
