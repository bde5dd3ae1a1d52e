"""Errors of the library, for who has a form and no command line, and need not know where the state lies."""

from __future__ import annotations

import re
from pathlib import Path

_OTHER_WORDS = {
    r"; give another name with --task\b": "; give the round another name",
    r",? or leave them out with --skip-bad\b": "",
    r"\bgive --restart to begin anew": "send restart=true to throw it away and begin anew",
    r" \(--restart --lr [^)]*\)": "",
    r"\bwith --task\b": "for the round",
    r"; --relearn learns them again\b": "; relearn=true learns them again",
    r"--restart\b": "restart=true",
}


def worded(error: str, state: Path) -> str:
    """The same without options and without the state's path.

    >>> worded("/x/birds: round 'a' is half learned with other options; give --restart to begin anew", Path("/x/birds"))
    "the state: round 'a' is half learned with other options; send restart=true to throw it away and begin anew"
    >>> worded("1 of 2 pictures cannot be read. Mend or remove them, or leave them out with --skip-bad", Path("/x"))
    '1 of 2 pictures cannot be read. Mend or remove them'
    """
    error = error.replace(str(state), "the state")
    for words, others in _OTHER_WORDS.items():
        error = re.sub(words, others, error)
    return error


def restart_helps(error: str) -> bool:
    """Whether the library says that the round would be learned if what is half learned were thrown away."""
    return re.search(r"\b(give|with) --restart\b", error) is not None
