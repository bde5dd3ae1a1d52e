"""Small pieces of HTML: text that is safe to show, numbers as people read them, tables that say what they are."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from sapwood.data.palette import palette

THUMBNAIL = 160  # pixels of the longer side: twice the width at which it is shown
HEAT_STEPS = 10  # shades of the heat map; the style sheet has one rule for each


class Html(str):
    """Text that is markup already and must not be escaped again."""

    __slots__ = ()


def text(value: object) -> Html:
    """Anything as HTML text: escaped, unless it is :class:`Html`.

    >>> text("<b>cat & dog</b>")
    '&lt;b&gt;cat &amp; dog&lt;/b&gt;'
    """
    return value if isinstance(value, Html) else Html(escape(str(value)))


def section(title: str, *parts: str) -> Html:
    """A part of the page with a heading."""
    anchor = re.sub("[^a-z]+", "-", title.lower())
    return Html(
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{text(title)}</h2>\n'
        + "".join(parts)
        + "</section>\n"
    )


def swatch(classes: Sequence[str], name: str) -> Html:
    """A class's colour in masks; the background, which is none of ``classes``, has none.

    >>> swatch(("road",), "road")
    '<span class="swatch" style="background:rgb(128 0 0)"></span>'
    """
    if name not in classes:
        return Html('<span class="swatch"></span>')
    red, green, blue = palette()[1 + classes.index(name)]
    return Html(f'<span class="swatch" style="background:rgb({red} {green} {blue})"></span>')


def percent(fraction: float | None, digits: int = 1) -> Html:
    """A fraction as a percentage without the sign; ``not measured`` for None.

    >>> percent(0.734), percent(None)
    ('73.4', '<span class="none">not measured</span>')
    """
    if fraction is None:
        return Html('<span class="none">not measured</span>')
    return Html(f"{100 * fraction:.{digits}f}".replace("-", "\N{MINUS SIGN}"))


def size(count: int) -> str:
    """Bytes with a decimal unit.

    >>> size(812), size(1_234_567)
    ('812 B', '1.2 MB')
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them.

    >>> duration(0.0123), duration(4.21), duration(200), duration(7500), duration(None)
    ('12.3 ms', '4.2 s', '3 min 20 s', '2 h 5 min', 'not recorded')
    """
    if seconds is None:
        return "not recorded"
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def one_line(value: Any) -> str:
    """A setting as one line of text, numbers as they are typed.

    >>> one_line(True), one_line(None), one_line(0.0005), one_line(1993), one_line(("q", "v"))
    ('true', 'none', '0.0005', '1993', 'q, v')
    """
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
        case Mapping():
            return ", ".join(f"{key}: {one_line(item)}" for key, item in value.items())
        case list() | tuple():
            return ", ".join(one_line(item) for item in value)
        case _:
            return str(value)


def amount(value: Any) -> str:
    """A cost as one line of text; counts are grouped by thousands.

    >>> amount(22056576), amount("1.2 GB"), amount(None)
    ('22,056,576', '1.2 GB', 'none')
    """
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else one_line(value)


def png(image: np.ndarray) -> Html:
    """A picture, uint8 [H, W, 3], as a ``data:`` URI of a PNG no larger than a thumbnail."""
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_uri(picture, "png")


def jpeg(image: np.ndarray) -> Html:
    """A picture, uint8 [H, W, 3], as a ``data:`` URI of a JPEG of its size: a fifth of a PNG's bytes."""
    return data_uri(Image.fromarray(image), "jpeg", quality=85, subsampling=0)  # 0: edges of masks keep their colours


def data_uri(picture: Image.Image, form: str, **options: Any) -> Html:
    """A picture as a ``data:`` URI; ``options`` are those of Pillow's writer of that form."""
    stream = io.BytesIO()
    picture.save(stream, format=form, optimize=True, **options)
    return Html(f"data:image/{form};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}")


@dataclass(frozen=True)
class Column:
    """Heading of a table's column; numbers stand at the right."""

    heading: str | Html
    number: bool = False


def table(
    caption: str | Html,
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    kind: str = "",
    apart: Container[int] = (),
) -> Html:
    """A table whose first cell of each row is the row's heading; wide ones scroll in their own box.

    A cell may be a ``<td>`` already (:class:`Html` that starts with it). Rows at the positions ``apart`` start a group.
    """
    heads = "".join(f'<th scope="col"{_right(column)}>{text(column.heading)}</th>' for column in columns)
    lines = []
    for place, (first, *rest) in enumerate(rows):
        cells = "".join(_cell(value, column) for value, column in zip(rest, columns[1:], strict=True))
        opening = '<tr class="apart">' if place in apart else "<tr>"
        lines.append(f'{opening}<th scope="row">{text(first)}</th>{cells}</tr>')
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="{kind}"><caption>{text(caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>\n"
    )


def _right(column: Column) -> str:
    return ' class="number"' if column.number else ""


def _cell(value: object, column: Column) -> str:
    shown = text(value)
    return shown if shown.startswith("<td") else f"<td{_right(column)}>{shown}</td>"


def heat(value: float | None, mark: str = "") -> Html:
    """A cell of a heat map: a fraction in per cent on its shade, ``mark`` (markup) after it."""
    if value is None:
        return Html('<td class="missing"><span class="aside">not measured</span></td>')
    return Html(f'<td class="number h{round(HEAT_STEPS * value)}">{percent(value)}{mark}</td>')


def pairs(title: str, first: str, values: Mapping[str, Any], shown: Callable[[Any], str]) -> Html:
    """A table of names and values; ``first`` heads the names."""
    rows = [[key, shown(value)] for key, value in values.items()]
    return table(f"{title} by name", [Column(first), Column("value")], rows, f"pairs {first}")
