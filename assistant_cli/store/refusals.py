"""What Postgres refuses, as the program's own errors, which say what to do."""

from __future__ import annotations

from typing import NoReturn

import psycopg

from ..errors import (
    AssistantError,
    BadDataError,
    ConfigurationError,
    ConflictError,
    DatabaseUnreachableError,
    NotPermittedError,
    QueueFullError,
    summary_of,
)

_QUEUE_FULL = "AS001"
"""The SQLSTATE that the schema's own trigger function raises, assistant.limit_waiting."""
READ_ONLY = (
    "this server is read-only, for all or for this user: use the primary's address where it is a "
    "standby, else have default_transaction_read_only off"
)
ASK_DOCTOR = "; `assistant doctor` tells more"
_NOT_MIGRATED = {"42P01", "3F000", "42703", "42883"}
_OUT_OF_NUMBERS = {"GetNewTransactionId", "GetNewMultiXactId"}


def raise_refused_connection(error: psycopg.Error) -> NoReturn:
    """Raise the program's own error for why no connection came to be, without its password."""
    text = str(error)
    reason = summary_of(text.rpartition("FATAL:")[2] or text)
    if "password" in text or "authentication failed" in text or "pg_hba.conf" in text:
        raise NotPermittedError(f"the database refuses this user or password: {reason}") from None
    if 'database "' in text and "does not exist" in text:
        raise ConfigurationError(f"no such database: {reason}") from None
    if 'role "' in text and "does not exist" in text:
        raise NotPermittedError(f"no such database user: {reason}") from None
    if "permission denied" in text or "not permitted to log in" in text:
        raise NotPermittedError(f"the database refuses this user: {reason}") from None
    if "too many connections for" in text:
        raise DatabaseUnreachableError(
            f"{reason}: that is its CONNECTION LIMIT; end a watch or another command, or let the "
            "owner raise it"
        ) from None
    if "invalid" in text and ("option" in text or "value" in text):
        raise ConfigurationError(f"the database URL is wrong: {reason}") from None
    raise DatabaseUnreachableError(f"cannot reach the database: {reason}{ASK_DOCTOR}") from None


def is_full_of_hints(error: psycopg.Error) -> bool:
    """Whether the server's queue of notifications has no room."""
    return error.diag.source_function == "PreCommit_Notify"


def translate(error: psycopg.Error) -> AssistantError:
    """The program's own error for what the database said, without any value in it."""
    state = error.sqlstate or ""
    reason = summary_of(error.diag.message_primary or str(error))
    kind: type[AssistantError] = DatabaseUnreachableError
    if state in _NOT_MIGRATED:
        return ConfigurationError(
            "this database is not set up for this program; run `assistant db migrate`"
        )
    if state == _QUEUE_FULL:
        return QueueFullError(f"{reason}; nothing was kept, try again later")
    if state == "42501":
        return NotPermittedError(
            f"the database does not permit this: {reason}; reading takes the role "
            "assistant_reader, writing assistant_runtime, migrating the owner's (infra/roles.sql)"
        )
    if state == "25006":
        return DatabaseUnreachableError(READ_ONLY)
    if is_full_of_hints(error):
        reason += "; end the session that listens and does not read, or stays in a transaction"
    elif error.diag.source_function in _OUT_OF_NUMBERS:
        reason += "; drop old replication slots, end old and prepared transactions, and VACUUM it"
    elif state == "55000":
        kind = ConfigurationError
    elif state[:2] in {"22", "42", "54", "P0"} or isinstance(error, psycopg.DataError):
        kind = BadDataError
    elif state[:2] == "23":
        kind = ConflictError
    text = f"{reason} (SQLSTATE {state})" if state else reason
    return kind(f"the database says: {text}")
