"""``sapwood probe``: the pictures that a state keeps, by wish, to measure its classes on."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from sapwood.cli.options import AsJson, StateFolder
from sapwood.cli.screen import print_json, size, table
from sapwood.wording import counted


def probe(
    state: StateFolder,
    remove: Annotated[bool, typer.Option("--remove", help="Let go of all of them; later rounds keep none.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the pictures that `learn --keep-probe` keeps to measure old classes on, or remove them."""
    from sapwood.probes import kept_bytes, probe_rows, remove_probes
    from sapwood.state import State

    opened = State.open(state)
    removed = remove_probes(opened) if remove else 0
    kept = opened.reading(lambda: probe_rows(opened))
    counts = Counter(name for each in kept for name in each.classes)
    stored = kept_bytes(opened.version.record)
    wanted = opened.version.record.get("keep_probe", 0)
    if as_json:
        facts = {
            "version": opened.version.id,
            "removed": removed,
            "keep_probe": wanted,
            "bytes": stored,
            "images": len(kept),
        }
        print_json({**facts, "classes": [{"name": name, "images": count} for name, count in counts.items()]})
    elif remove:
        earlier = f"earlier versions still hold them: `sapwood prune {state} --keep 1` removes those"
        print(f"{state} is now {opened.version.id}, {opened.version.record['note']}; {earlier}")
    elif not counts:
        print(f"{state} keeps no pictures to measure on")
    else:
        print(table([["class", "pictures"], *([name, str(count)] for name, count in counts.items())], right=[1]))
        print(f"\n{size(stored)}: {counted(len(kept), 'picture')} never learned; --remove removes what is kept")
