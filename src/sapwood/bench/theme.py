"""Colours of a benchmark's charts: as they are in files; the page has the style sheet's in their place."""

from __future__ import annotations

from collections.abc import Mapping

INK, MUTED, ACCENT, GRID = "#1d211c", "#5d655b", "#2f6b3a", "#d9dcd3"  # those of the common style sheet
# Told apart by people who see fewer colours too; dark enough for text on white.
SERIES = ("#0072b2", "#d55e00", "#00795a", "#b0448a", "#8f6b00", "#2f97cf")
_DARK = ("#56b4e9", "#ff8c42", "#2fc79a", "#e08cc0", "#dcb93a", "#9fc3ff")
PAGE: Mapping[str, str] = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    ACCENT: "var(--accent)",
    GRID: "var(--line)",
    **{colour: f"var(--series-{place})" for place, colour in enumerate(SERIES)},
}
"""What the page calls each of them."""


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--series-{place}: {colour};" for place, colour in enumerate(colours))


STYLE = f"""
:root {{ {_variables(SERIES)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} }} }}
body {{ max-width: 92rem; }}
.bench {{ font-size: .85rem; }}
.bench :is(th, td) {{ padding: .35rem .5rem; white-space: nowrap; }}
.bench thead .number {{ white-space: normal; }}
.bench th:first-child {{ position: sticky; left: 0; background: var(--paper); }}
.bench .apart :is(th, td) {{ border-top: 2px solid var(--muted); }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem 2rem; }}
.charts figure {{ margin: 0; overflow-x: auto; }}
.charts figcaption {{ font-weight: 500; margin-bottom: .25rem; }}
details {{ margin: .4rem 0; }}
.seeds {{ display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: .6rem 0 1rem; }}
details > .scroll {{ margin: .6rem 0 1rem; }}
"""
"""What the page adds to the common style sheet."""
