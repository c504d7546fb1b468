"""Everything the program can answer with instead of a result.

One tree; each leaf carries the exit code the command line leaves with. The codes are part of
the contract with scripts: answers are 3 to 9, failures 64 to 78 (sysexits), deadlines and
signals from 124. A message is one line: what happened, and what to do about it.
"""

from __future__ import annotations


def summary_of(error: object) -> str:
    """The first line of an error or its text, which tells why; what follows are details."""
    return str(error or "").strip().partition("\n")[0]


class AssistantError(Exception):
    """Base of all errors the program foresees; `exit_code` is what a command exits with."""

    exit_code = 70


class UsageError(AssistantError):
    """The command line itself is wrong."""

    exit_code = 2


class NotFoundError(AssistantError):
    """No such key or path; no such agent, or it is not running."""

    exit_code = 3


class StaleError(AssistantError):
    """The holder is gone without saying so."""

    exit_code = 4


class ConflictError(AssistantError):
    """The race was lost: revision moved, key exists, agent already held."""

    exit_code = 5


class LeaseLostError(ConflictError):
    """Another process took the agent over, so this one may no longer write for it."""


class TurnClosedError(ConflictError):
    """Another process closed the turn while this one could not renew its lease."""


class AgentFailedError(AssistantError):
    """An agent or a turn failed."""

    exit_code = 6


class PendingError(AssistantError):
    """Not yet: what was asked for is still to come."""

    exit_code = 8


class BadDataError(AssistantError):
    """The data given is not acceptable: not JSON, a bad path, too large."""

    exit_code = 65


class InputMissingError(AssistantError):
    """An input file is missing or unreadable."""

    exit_code = 66


class DatabaseUnreachableError(AssistantError):
    """The database does not answer; whatever was under way may or may not have happened."""

    exit_code = 69


class OutputError(AssistantError):
    """What was to be printed could not be written; the work itself may well be done."""

    exit_code = 74


class QueueFullError(AssistantError):
    """As many messages wait already as may; later there is room again."""

    exit_code = 75


class NotPermittedError(AssistantError):
    """The database or the operating system refuses."""

    exit_code = 77


class ConfigurationError(AssistantError):
    """The configuration is wrong: malformed DSN, unknown database, schema missing or too new."""

    exit_code = 78


class ClosedPipeError(AssistantError):
    """Whoever read stdout has left; nothing is said about it."""

    exit_code = 141


class DeadlinePassedError(AssistantError):
    """What was waited for did not happen in time."""

    exit_code = 124
