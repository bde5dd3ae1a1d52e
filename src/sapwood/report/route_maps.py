"""Routing matrices as heat maps, and how much of each round's route runs where older ones did."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from PIL import Image

from sapwood.report.content import Routes, SiteRoute
from sapwood.report.markup import Column, Html, data_uri, section, table, text

ROWS_SHOWN = 12  # blocks, before the rest is folded away
NEGATIVE, POSITIVE = (214, 96, 28), (36, 122, 204)  # told apart by the colour-blind, on light and on dark
_SHADES = 31  # of each colour; zero lets the page shine through, whatever its colour


def routes(found: Routes | None, rounds: Sequence[Html]) -> str:
    """The section of the page; empty without routes.

    Args:
        found: what to show.
        rounds: names of all rounds.
    """
    if found is None:
        return ""
    limits = (_largest([site.old for site in found.sites]), _largest([site.delta for site in found.sites]))
    rank = len(found.sites[0].old)
    hint = (
        f"R ({rank} × {rank}) routes what a layer's down factor reads to its up factor, after all rounds; "
        "ΔR is what the last round that trained it added. Blocks are rows, projections columns; of a matrix, rows are "
        "where it routes to and columns where from. Shades follow the square root of the size, so that small entries "
        "show beside large ones."
    )
    return section(
        "Routes",
        f'<p class="note">{hint}</p>\n',
        _scale("R", limits[0]),
        _scale("ΔR", limits[1]),
        _maps(found.sites, limits),
        _overlaps(found, rounds),
    )


def _largest(matrices: Sequence[np.ndarray]) -> float:
    return float(max(np.abs(matrix).max() for matrix in matrices)) or 1.0


def _scale(name: str, limit: float) -> str:
    stops = ((NEGATIVE, "100%", 0), (NEGATIVE, "0%", 50), (POSITIVE, "0%", 50), (POSITIVE, "100%", 100))
    shades = ", ".join(f"rgb({' '.join(map(str, colour))} / {alpha}) {place}%" for colour, alpha, place in stops)
    ticks = "".join(f"<span>{_number(limit * share)}</span>" for share in (-1, -0.25, 0, 0.25, 1))
    return (
        f'<div class="scale" role="img" aria-label="Colours of {name} from {_number(-limit)} to {_number(limit)}">'
        f'<b>{name}</b><i style="background-image:linear-gradient(to right, {shades})"></i>{ticks}</div>\n'
    )


def _maps(sites: Sequence[SiteRoute], limits: tuple[float, float]) -> str:
    parts = list(dict.fromkeys(_part(site) for site in sites))
    columns = [Column("block")]
    for part in parts:
        columns += [Column(f"{part}: R"), Column(f"{part}: ΔR")]
    rows: list[list[object]] = []
    for block, members in groupby(sites, _block):
        of = {_part(site): site for site in members}
        rows.append([block, *(cell for part in parts for cell in _pair(of.get(part), limits))])
    shown = table("Routes of each block and projection", columns, rows[:ROWS_SHOWN], "routes")
    if rest := rows[ROWS_SHOWN:]:
        more = table("Routes of the other blocks", columns, rest, "routes")
        shown = Html(f"{shown}<details><summary>{len(rest)} more blocks</summary>\n{more}</details>\n")
    return shown


def _pair(site: SiteRoute | None, limits: tuple[float, float]) -> tuple[object, object]:
    if site is None:
        return "", ""
    return _map(f"R of {site.site}", site.old, limits[0]), _map(f"ΔR of {site.site}", site.delta, limits[1])


def _map(name: str, matrix: np.ndarray, limit: float) -> Html:
    words = text(f"{name}: {_number(matrix.min())} to {_number(matrix.max())}")
    return Html(f'<img src="{heat_map(matrix, limit)}" alt="{words}" title="{words}">')


def heat_map(matrix: np.ndarray, limit: float) -> Html:
    """A matrix as a PNG of a pixel an entry: transparent at zero, full colour at ``limit`` and beyond."""
    share = np.clip(matrix / limit, -1, 1)
    steps = np.round(_SHADES * np.sign(share) * np.sqrt(np.abs(share)))
    picture = Image.fromarray((steps + _SHADES).astype(np.uint8))
    picture.putpalette([level for step in range(2 * _SHADES + 1) for level in _colour(step)], "RGB")
    alphas = bytes(round(255 * abs(step - _SHADES) / _SHADES) for step in range(2 * _SHADES + 1))
    return data_uri(picture, "png", transparency=alphas)


def _colour(step: int) -> tuple[int, int, int]:
    return NEGATIVE if step < _SHADES else POSITIVE


def _overlaps(found: Routes, rounds: Sequence[Html]) -> str:
    later = [(index, row) for index, row in enumerate(found.overlaps) if row is not None]
    if not later:
        return '<p class="note">There is no second route yet whose overlap with the first could be told.</p>\n'
    means = [[rounds[index], _share(float(np.mean(row))), _bar(float(np.mean(row)))] for index, row in later]
    columns = [Column("round"), Column("overlap", number=True), Column("")]
    each = [[site.site, *(_share(row[place]) for _, row in later)] for place, site in enumerate(found.sites)]
    heads = [Column("site"), *(Column(rounds[index], number=True) for index, _ in later)]
    return (
        table("Overlap of each round's route with the older ones, mean over the sites", columns, means, "classes")
        + '<p class="note">‖UₖᵀΔR‖ / ‖ΔR‖: the share of a round’s route in the directions Uₖ that were to be left '
        "alone; 0 for none of it, 1 for all. A route without preference has √(k / r): 0.71 where half of the "
        "directions are protected.</p>\n"
        f"<details><summary>all {len(found.sites)} sites</summary>\n"
        f"{table('Overlap of each site', heads, each)}</details>\n"
    )


def _share(value: float) -> str:
    return f"{value:.2f}"


def _bar(value: float) -> Html:
    return Html(f'<span class="bar" style="--share:{100 * value:.0f}%"></span>')


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}")


def _part(site: SiteRoute) -> str:
    return site.site.rsplit(".", 1)[-1]


def _block(site: SiteRoute) -> str:
    return site.site.rpartition(".")[0].replace(".", " ")
