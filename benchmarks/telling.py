"""How scripts with one flat result print it."""

from __future__ import annotations

import json
import sys
from typing import Any


def tell(found: dict[str, Any], as_json: bool) -> None:
    """One JSON object, or a line for each entry."""
    lines = [json.dumps(found)] if as_json else [f"{key}: {value}" for key, value in found.items()]
    sys.stdout.write("\n".join(lines) + "\n")
