"""Every error a user can meet: one line that says what is wrong, where, and what to do.

The command line prints the line and exits with ``exit_code``; the library raises.
"""

from __future__ import annotations


class SapwoodError(Exception):
    """Base of all errors raised on purpose; the run failed through no mistake of the user (exit code 1)."""

    exit_code = 1


class UsageError(SapwoodError):
    """The user can mend it: a name, an option, a folder (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(UsageError):
    """Pictures, labels or their folder are not as they should be."""


class StateError(UsageError):
    """The state folder is not one, is newer than this library, or does not match its checksums."""


class StateBusy(StateError):
    """Another process is writing to the state folder."""


class BackboneError(UsageError):
    """A backbone cannot be had: unknown family, no network and no cache, a bad checksum."""


class UnknownName(UsageError, LookupError):
    """A name that no registry entry bears; the message lists those that exist."""


class NotMergeable(SapwoodError):
    """The adapter's change depends on the input, so that no single weight can hold it."""


class Interrupted(SapwoodError):
    """Stopped by Ctrl-C or SIGTERM after a checkpoint was written."""

    exit_code = 130


class RoundRefused(SapwoodError):
    """A round was learned and measured, and not committed because an old class would suffer (exit code 3).

    Attributes:
        facts: round, version, limit and the classes with their fractions before and after, as JSON.
    """

    exit_code = 3

    def __init__(self, message: str, facts: dict[str, object]) -> None:
        super().__init__(message)
        self.facts = facts
