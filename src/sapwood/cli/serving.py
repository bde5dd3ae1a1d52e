"""``sapwood serve``: a state over HTTP, with a page to ask and to teach it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapwood.cli.options import Device, StateFolder, check_device
from sapwood.errors import ConfigError

_MIB = 2**20


def serve(
    state: StateFolder,
    host: Annotated[
        str, typer.Option(help="Address to listen at; any but this machine's own needs tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    read_only: Annotated[bool, typer.Option("--read-only", help="Answer, and let nobody teach.")] = False,
    ask_token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the token that who asks must send; else SAPWOOD_ASK_TOKEN is taken."),
    ] = None,
    teach_token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the token that who teaches must send; else SAPWOOD_TEACH_TOKEN."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name that requests may be addressed to, such as a proxy's."),
    ] = None,
    max_upload: Annotated[float, typer.Option(min=0.01, metavar="MIB", help="Most of a request that asks.")] = 64,
    max_pictures: Annotated[int, typer.Option(min=1, metavar="N", help="Most pictures of a request that asks.")] = 64,
    max_lesson: Annotated[float, typer.Option(min=0.01, metavar="MIB", help="Most of a request that teaches.")] = 2048,
    queue: Annotated[int, typer.Option(min=1, metavar="N", help="Most pictures that wait for the network.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Most that a prediction may take.")] = 30,
    connections: Annotated[int, typer.Option(min=1, metavar="N", help="Most requests at a time.")] = 128,
    device: Device = None,
) -> None:
    """Serve a state over HTTP: a page, and an interface for programs (described at /docs).

    Stops on Ctrl-C. What it logs, one JSON object a line, goes to stderr.
    """
    from sapwood.serve.settings import ASK_TOKEN, TEACH_TOKEN, ServeSettings, read_token
    from sapwood.state import State

    settings = ServeSettings(
        state,
        host=host,
        port=port,
        ask_token=read_token(ASK_TOKEN, ask_token_file),
        teach_token=read_token(TEACH_TOKEN, teach_token_file),
        read_only=read_only,
        allowed_hosts=tuple(allow_host or ()),
        device=device,
        upload_bytes=round(max_upload * _MIB),
        pictures=max_pictures,
        teach_bytes=round(max_lesson * _MIB),
        queue=queue,
        timeout=timeout,
        connections=connections,
    )
    State.open(state)  # before anything is loaded that takes seconds
    check_device(device)
    try:
        from sapwood.serve.running import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "sapwood":
            raise
        raise ConfigError("sapwood serve needs the extra: pip install 'sapwood[serve]'") from error
    run(settings, lambda url: print(f"{state} is served at {url}", flush=True))
