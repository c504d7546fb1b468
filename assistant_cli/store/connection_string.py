"""Connection strings: taken apart, checked, and shown without their passwords."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..errors import ConfigurationError

# libpq marks what is to be hidden, but for these.
_KEYS = {"scram_client_key", "scram_server_key"}


def parse_dsn(dsn: str) -> dict[str, Any]:
    """Split a connection string into its parameters.

    Raises:
        ConfigurationError: it is malformed; the text, which may hold a password, is not repeated.
    """
    try:
        parameters = dict(conninfo_to_dict(dsn))
        _check_parameters(parameters)
    except (psycopg.Error, ValueError):
        pass
    else:
        return parameters
    # Outside the handler, so that no chained exception carries the text either.
    raise ConfigurationError(
        "the database URL is malformed; write it like postgresql://user@host:5432/database, "
        "with %40 for an @ in the password"
    )


def _check_parameters(parameters: dict[str, Any]) -> None:
    """Raise ValueError for what psycopg would take for a server that does not answer."""
    hosts = str(parameters.get("host", "")).split(",")
    # One that begins so is a folder of sockets, which may well have one, or an abstract socket.
    if any("@" in host for host in hosts if not host.startswith(("/", "@"))):
        raise ValueError("the end of a password is taken for the host")
    if "user" not in parameters and "@" in str(parameters.get("dbname", "")):
        raise ValueError("a password with a slash is taken for a port and a database")
    for name in ("port", "connect_timeout"):
        for number in filter(None, str(parameters.get(name, "")).split(",")):
            int(number)


def redact_dsn(dsn: str) -> str:
    """The connection string as it may be shown: without passwords, secrets and keys."""
    hidden = {o.keyword.decode() for o in pq.Conninfo.get_defaults() if o.dispchar == b"*"}
    shown = parse_dsn(dsn).items()
    return make_conninfo(**{k: v for k, v in shown if k not in hidden | _KEYS})
