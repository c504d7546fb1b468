"""What is configured, reachable and set up: read, never changed, never started."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from . import server_account
from .active_hours import parse_active_hours
from .durations import parse_duration, parse_interval
from .embedded_postgres import EmbeddedPostgres
from .errors import (
    AssistantError,
    ConfigurationError,
    DatabaseUnreachableError,
    NotPermittedError,
)
from .models import get_model
from .settings import Settings, parse_daily_tokens
from .store import health, leases
from .store.connection_string import parse_dsn, redact_dsn
from .store.database import Database
from .store.migrations import LATEST_VERSION, check_version
from .store.opening import configured_dsn
from .store.refusals import ASK_DOCTOR, READ_ONLY


@dataclass(frozen=True)
class DatabaseFacts:
    """The database as found.

    Attributes:
        problem: why it cannot be used.
    """

    source: str
    url: str | None
    server: str | None = None
    schema_version: int | None = None
    encoding: str = ""
    problem: AssistantError | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "url": self.url,
            "reachable": self.server is not None,
            "server": self.server,
            "schema_version": self.schema_version,
            "programs": _bundled_programs(),
        }


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: `problem` says what is wrong and what to do."""

    check: str
    result: str
    problem: AssistantError | None = None


async def describe_database(settings: Settings) -> DatabaseFacts:
    """Look at the configured database as it is."""
    url = None
    try:
        dsn = configured_dsn(settings)
        url = redact_dsn(dsn)
        database = Database(dsn)
        try:
            server, encoding, version = await health.read_server(database)
        finally:
            await database.close()
    except AssistantError as error:
        return DatabaseFacts(settings.database_source, url, problem=_advise(settings, error))
    problem = _version_problem(version)
    return DatabaseFacts(settings.database_source, url, server, version, encoding, problem)


def _bundled_programs() -> str | None:
    """The folder of the pg_dump and psql that came with this program."""
    try:
        return str(server_account.bundled_programs())
    except ConfigurationError:
        return None


async def diagnose(settings: Settings) -> AsyncIterator[Finding]:
    """Check everything a run needs, one finding after the other."""
    yield _home(settings)
    yield _model("model", settings, settings.model)
    for agent, model in settings.models.items():
        yield _model(f"model of {agent}", settings, model)
    yield _parsed("heartbeat", settings.heartbeat, parse_interval)
    yield _parsed("heartbeat hours", settings.heartbeat_hours, parse_active_hours)
    yield _parsed("heartbeat tokens", settings.heartbeat_tokens, parse_daily_tokens)
    yield _parsed("turn timeout", settings.turn_timeout, parse_duration)
    facts = await describe_database(settings)
    named = f"{facts.source}: {facts.url}" if facts.url else facts.source
    yield Finding("database", named, _open_password(settings) if facts.url else None)
    if facts.server is None and settings.embedded and _is_down(facts.problem):
        yield Finding("server", "not running; the next command that needs it starts it")
        return
    if facts.server is None:
        yield Finding("server", "does not answer", facts.problem)
        return
    yield Finding("server", f"PostgreSQL {facts.server}")
    yield _encoding(facts.encoding)
    known = f"version {facts.schema_version} of {LATEST_VERSION}"
    yield Finding("schema", known, facts.problem)
    if facts.problem is None:
        async for finding in _look_inside(settings):
            yield finding


def _home(settings: Settings) -> Finding:
    home = settings.home
    # Path.exists would raise where a folder may not be searched.
    found = next(folder for folder in (home, *home.parents) if os.path.exists(folder))  # noqa: PTH110
    problem = server_account.find_closed(home) if settings.embedded else None
    if settings.embedded and not os.access(found, os.W_OK):
        problem = NotPermittedError(
            f"cannot write to {found}; set ASSISTANT_HOME or ASSISTANT_DATABASE_URL"
        )
    return Finding("home", str(home), problem)


def _parsed(check: str, text: str, parse: Callable[[str], object]) -> Finding:
    try:
        parse(text)
    except ValueError as error:
        return Finding(check, text, ConfigurationError(str(error)))
    return Finding(check, text)


def _encoding(encoding: str) -> Finding:
    problem = None
    if encoding != "UTF8":
        problem = ConfigurationError(
            "it does not hold all text; create a database with ENCODING 'UTF8' TEMPLATE template0"
        )
    return Finding("encoding", encoding, problem)


async def _look_inside(settings: Settings) -> AsyncIterator[Finding]:
    database = Database(configured_dsn(settings))
    try:
        missing = await health.find_missing_triggers(database)
        problem = None
        if missing:
            problem = ConfigurationError(
                f"triggers are missing or disabled: {', '.join(missing)}; "
                "`psql -f infra/init.sql` puts them back"
            )
        yield Finding("kv triggers", "in place" if not missing else "incomplete", problem)
        yield await _writing(database)
        if await health.behind_pooler(database):
            yield Finding("pooler", "in front of the server: nothing is prepared, watching polls")
        usage = await health.notification_queue_usage(database)
        yield Finding("notification queue", f"{usage:.0%} full")
        works = await health.notifications_arrive(database)
        yield Finding("notifications", "arrive" if works else "do not arrive; watching polls")
        for holder in await leases.find_holders(database):
            state = "live" if holder.live and not holder.gone else "stale"
            yield Finding(f"holder of {holder.agent}", f"{state}: {holder}")
    except AssistantError as error:
        yield Finding("database", "failed", error)
    finally:
        await database.close()


async def _writing(database: Database) -> Finding:
    if await health.is_read_only(database):
        return Finding("writing", "impossible", DatabaseUnreachableError(READ_ONLY))
    if await health.may_write(database):
        return Finding("writing", "permitted")
    advice = "this user may not write here; GRANT assistant_runtime to it (infra/roles.sql)"
    return Finding("writing", "not permitted", NotPermittedError(advice))


def _open_password(settings: Settings) -> ConfigurationError | None:
    """Whether others can read the database's password where it was configured."""
    file = settings.home / "config.toml"
    if settings.database_source != file.name or not file.stat().st_mode & 0o044:
        return None
    if "password" not in parse_dsn(settings.database_url or ""):
        return None
    return ConfigurationError(f"others may read the password in {file}; chmod go-r {file}")


def _model(check: str, settings: Settings, name: str) -> Finding:
    try:
        return Finding(check, get_model(name, None, settings.base_url).name)
    except AssistantError as error:
        return Finding(check, name, error)


def _is_down(problem: AssistantError | None) -> bool:
    return isinstance(problem, DatabaseUnreachableError)


def _advise(settings: Settings, error: AssistantError) -> AssistantError:
    if not _is_down(error):
        return error
    if settings.embedded:
        try:
            EmbeddedPostgres(settings.home).require_version()
        except ConfigurationError as unfit:
            return unfit
        return DatabaseUnreachableError(
            "the embedded Postgres is not running; the next command that needs it starts it"
        )
    # Who asks is the doctor.
    advice = "; see that the server is up and the address right"
    return DatabaseUnreachableError(str(error).replace(ASK_DOCTOR, advice))


def _version_problem(version: int) -> AssistantError | None:
    try:
        check_version(version)
    except AssistantError as error:
        return error
    return None
