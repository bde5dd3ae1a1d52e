"""``sapwood classes`` and ``sapwood relabel``: mending what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapwood.cli.options import AsJson, Device, StateFolder, check_device
from sapwood.cli.screen import listening, print_json, size, table
from sapwood.errors import ConfigError

if TYPE_CHECKING:
    from sapwood.repair_names import Repair
    from sapwood.state import State

_WORDS = {"rename": ("OLD", "NEW"), "merge": ("OLD", "INTO"), "remove": ("CLASS",)}


def classes(
    state: StateFolder,
    action: Annotated[
        str | None, typer.Argument(metavar="[rename|merge|remove]", help="What to do; nothing lists the classes.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CLASS...]", help="rename OLD NEW, merge OLD INTO, remove CLASS.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="remove: the pictures of the class, where the state kept no features."),
    ] = None,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="remove: go on where the head's sums still hold pictures of the class.")
    ] = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """List the classes, or rename one, make one of two, or remove one.

    A class keeps its id whatever it is called. Each change is a version of its own, and `undo` takes it back.
    """
    from sapwood.repair_names import rename_class
    from sapwood.state import State

    given = names or []
    _check(action, given, {"--pictures": pictures, "--inexact": inexact})
    check_device(device)
    opened = State.open(state)
    if action is None:
        _list(opened, as_json)
        return
    with listening() as progress:
        if action == "rename":
            done = rename_class(opened, *given)
        elif action == "merge":
            from sapwood.repair import merge_classes

            done = merge_classes(opened, *given)
        else:
            from sapwood.repair import remove_class

            done = remove_class(opened, *given, pictures=pictures, inexact=inexact, device=device, progress=progress)
        for remark in done.remarks:
            progress.note(remark)
    _say(state, opened, done, as_json)


def relabel(
    state: StateFolder,
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE...", help="Files, or folders, that were learned.", show_default=False),
    ],
    to: Annotated[str, typer.Option("--to", metavar="CLASS", help="The class they are of.", show_default=False)],
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Count pictures that were learned with a wrong label for the right class.

    They are known by their bytes, wherever they lie now.
    """
    from sapwood.repair import relabel
    from sapwood.state import State

    check_device(device)
    opened = State.open(state)
    with listening() as progress:
        done = relabel(opened, pictures, to, device=device, progress=progress)
        for remark in done.remarks:
            progress.note(remark)
    _say(state, opened, done, as_json)


def _check(action: str | None, names: list[str], options: dict[str, Any]) -> None:
    """Refuse words that are no command."""
    if action is not None and action not in _WORDS:
        raise ConfigError(f"classes STATE {action!r}: must be one of {', '.join(_WORDS)}, or left out to list them")
    if action is not None and len(names) != len(_WORDS[action]):
        raise ConfigError(f"write: sapwood classes STATE {action} {' '.join(_WORDS[action])}; got {len(names)} names")
    if (wrong := [name for name, value in options.items() if value]) and action != "remove":
        raise ConfigError(f"{', '.join(wrong)}: only for classes STATE remove CLASS")


def _list(state: State, as_json: bool) -> None:
    from sapwood.repair_names import kept_bytes, list_classes

    listed = state.reading(lambda: list_classes(state))
    kept = kept_bytes(state)
    if as_json:
        print_json({"version": state.version.id, "classes": listed, "features_bytes": kept})
        return
    masks = state.version.record["kind"] == "segmentation"
    what = "value" if masks else "pictures"  # in drawn masks
    rows = [["id", "class", "round", what]]
    rows += [[str(entry["id"]), entry["name"], entry["round"] or "–", str(entry[what])] for entry in listed]
    print(table(rows, right=[0, 3]))
    if kept:
        print(f"\n{size(kept)} of features are kept, so that pictures can be taken out of the sums exactly")


def _say(folder: Path, state: State, done: Repair, as_json: bool) -> None:
    version = done.version
    if as_json:
        from sapwood.repair_names import list_classes

        listed = list_classes(state)
        note = version.record["note"]
        print_json({"version": version.id, "note": note, "remarks": list(done.remarks), "classes": listed})
    else:
        print(f"{folder} is now {version.id}, {version.record['note']}")
