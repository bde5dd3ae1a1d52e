"""What every page is set in: one document that loads nothing, with the style sheet inside."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from sapwood.report.markup import Html, text

MARK = '<meta name="generator" content="sapwood">'
"""What tells a page of ours from others, among its first lines."""

# The page may load nothing at all: a class name that smuggled markup past the escaping would still be inert.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: str, style: str = "") -> str:
    """A whole HTML document; ``body`` is markup, ``style`` follows the common style sheet."""
    common = files("sapwood.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{MARK}\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{text(title)}</title>\n<style>\n{common}{style}</style>\n</head>\n<body>\n"
        f"{body}</body>\n</html>\n"
    )


def header(title: str, facts: Mapping[str, object]) -> Html:
    """The heading of a page, with what it is about by name."""
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())
    return Html(f'<header>\n<h1>{text(title)}</h1>\n<dl class="facts">{items}</dl>\n</header>\n')
