"""Whether a round may be committed: what it does to old classes, measured on the same pictures before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from sapwood.errors import DataError, RoundRefused
from sapwood.network import Network
from sapwood.preparation import Prepared, taught
from sapwood.progress import Progress
from sapwood.record import task_names
from sapwood.state import Version

_LISTED = 5
_ROUNDING = 1e-9  # in points: 90 - 85 is not more than 5


class Acceptance:
    """Compares a round with the present version, class by class.

    Of pictures, a class's share of right answers is compared, of masks its IoU. Pixels of the round's new classes count
    on neither side: the present version cannot get them right.

    Args:
        prepared: the round, with pictures to measure on.
        version: the present one.
        limit: percentage points that a class may lose.
        network: the present version's.
        progress: listens.
        check: may raise between batches.

    Raises:
        DataError: there are old classes, and none of them is among the pictures to measure on.
    """

    def __init__(
        self,
        prepared: Prepared,
        version: Version,
        limit: float,
        network: Network,
        progress: Progress,
        check: Callable[[], None],
    ) -> None:
        self.prepared, self.version, self.limit = prepared, version, limit
        self.known = task_names(version.record)
        self.before: dict[str, float] = {}
        if not (old := [self.known[channel] for channel in taught(prepared.kind, self.known)]):
            return
        progress.note("measuring old classes before the round")
        self.before = self._shares(prepared.measure(network, progress, check))
        if not self.before:
            raise DataError(
                f"--max-drop: none of the old classes {_some(old)} is among the test pictures; add pictures of them"
            )
        if unseen := [name for name in old if name not in self.before]:
            progress.note(f"not among the test pictures, so --max-drop does not see them: {_some(unseen)}")

    def refusal(self, confusion: Tensor | None) -> RoundRefused | None:
        """What to raise, after a look at counts [K, K] of the network that has learned; None if nothing speaks against.

        A class that loses exactly the limit passes.
        """
        after = self._shares(confusion)
        drops = {name: 100 * (share - after[name]) for name, share in self.before.items()}
        lost = sorted((name for name in drops if drops[name] > self.limit + _ROUNDING), key=lambda name: -drops[name])
        if not lost:
            return None
        name, measure = self.prepared.round.task.name, self.prepared.kind.measure
        said = [f"{each!r} from {100 * self.before[each]:.1f} to {100 * after[each]:.1f} %" for each in lost]
        more = f" and {len(lost) - _LISTED} more" if len(lost) > _LISTED else ""
        return RoundRefused(
            f"round {name!r} was not committed, the state stays at {self.version.id}: {measure} fell by more than "
            f"{self.limit:g} points for {', '.join(said[:_LISTED])}{more}; give more pictures, another --method "
            "(in a new state) or a higher --max-drop",
            {
                "committed": False,
                "version": self.version.id,
                "task": name,
                "max_drop": self.limit,
                "dropped": [{"class": each, "before": self.before[each], "after": after[each]} for each in lost],
            },
        )

    def _shares(self, confusion: Tensor | None) -> dict[str, float]:
        """Fraction of each old class that is among the tests."""
        if confusion is None:
            return {}
        names, kind = self.prepared.round.names, self.prepared.kind
        counts = confusion.clone()
        counts[len(self.known) :] = 0
        old = [channel for channel in taught(kind, self.known) if counts[channel].any()]
        cells = kind.cells(counts, names, [{"classes": [names[c]], "annotated": [names[c]]} for c in old])
        return {names[channel]: cell for channel, cell in zip(old, cells, strict=True) if cell is not None}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
