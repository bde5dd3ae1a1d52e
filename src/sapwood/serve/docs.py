"""The interface described on one page, without anything from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1.25rem; }
h1, h2 { line-height: 1.25; }
h2 { font-size: 1.05rem; margin: 0 0 .5rem; }
article { border-top: 1px solid var(--line); padding: 1.5rem 0; }
code, pre { font: .9rem/1.5 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem 1rem; border: 1px solid var(--line); border-radius: .5rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
"""


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """What there is to ask for, from the application's own description."""
    described = request.app.openapi()
    parts = [
        _operation(path, method, operation)
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    title = escape(f"{described['info']['title']} {described['info']['version']}")
    return HTMLResponse(
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}: interface</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="stylesheet" href="/docs/style.css"></head>\n'
        f"<body><main><h1>{title}</h1>\n<p>{escape(described['info'].get('summary', ''))} "
        'The same for machines: <a href="/openapi.json">openapi.json</a>. Errors are problem documents (RFC 9457). '
        "Where the server asks for a token, send it as <code>Authorization: Bearer TOKEN</code>.</p>\n"
        f"{''.join(parts)}</main></body>\n</html>\n"
    )


@router.get("/docs/style.css")
async def style() -> Response:
    """How that page looks."""
    return Response(_STYLE.strip() + "\n", media_type="text/css")


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    lines = [f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}</p>"]
    if description := operation.get("description"):
        lines.append(f"<p>{escape(description)}</p>")
    rows = [(given["name"], given["in"], given.get("description", "")) for given in operation.get("parameters", ())]
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        fields = body.get("schema", {}).get("properties", {})
        rows += [(name, media, field.get("description", "")) for name, field in fields.items()]
    if rows:
        cells = "".join(
            f"<dt><code>{escape(name)}</code></dt><dd>{escape(where)}{escape(': ' + text if text else '')}</dd>"
            for name, where, text in rows
        )
        lines.append(f"<dl>{cells}</dl>")
    return f"<article>{''.join(lines)}</article>\n"
