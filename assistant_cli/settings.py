"""Where the program finds its database, its folder and its defaults.

A command-line option beats an environment variable, which beats the config file
(`config.toml` in the home folder), which beats the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigurationError

_KEYS = {"database_url", "model", "base_url", "heartbeat", "turn_timeout"}


@dataclass(frozen=True)
class Settings:
    """What was configured, each with the place it came from where that helps the user.

    Attributes:
        home: the folder that holds the config file and the embedded database.
        database_url: the DSN of the user's own Postgres; None means the embedded one.
        database_source: where the DSN was found, for messages.
        model: what answers messages: `offline`, `command:CMD` or such as `openai:gpt-5`.
        base_url: an OpenAI-compatible server that answers for `openai:`; None: OpenAI's.
        heartbeat: the time between two heartbeats as text, or `off`.
        turn_timeout: the deadline of one turn as text.
    """

    home: Path
    database_url: str | None = None
    database_source: str = "embedded"
    model: str = "offline"
    base_url: str | None = None
    heartbeat: str = "30m"
    turn_timeout: str = "10m"

    @property
    def embedded(self) -> bool:
        return self.database_url is None


def load_settings(
    database_url: str | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Gather the settings from the option given, the environment and the config file.

    Raises:
        ConfigurationError: the config file cannot be read or holds an unknown or non-text key.
    """
    home = _home(environ)
    file = _read_config(home / "config.toml")
    url, source = _database(database_url, environ, file)
    return Settings(
        home=home,
        database_url=url,
        database_source=source,
        model=environ.get("ASSISTANT_MODEL") or file.get("model", Settings.model),
        base_url=environ.get("ASSISTANT_BASE_URL") or file.get("base_url"),
        heartbeat=environ.get("ASSISTANT_HEARTBEAT", file.get("heartbeat", Settings.heartbeat)),
        turn_timeout=environ.get(
            "ASSISTANT_TURN_TIMEOUT", file.get("turn_timeout", Settings.turn_timeout)
        ),
    )


def _home(environ: Mapping[str, str]) -> Path:
    if given := environ.get("ASSISTANT_HOME"):
        return Path(given).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("assistant")


def _database(
    option: str | None, environ: Mapping[str, str], file: Mapping[str, str]
) -> tuple[str | None, str]:
    candidates = (
        (option, "--database-url"),
        (environ.get("ASSISTANT_DATABASE_URL"), "ASSISTANT_DATABASE_URL"),
        (environ.get("DATABASE_URL"), "DATABASE_URL"),
        (file.get("database_url"), "config.toml"),
    )
    return next(((url, source) for url, source in candidates if url), (None, "embedded"))


def _read_config(path: Path) -> dict[str, str]:
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error
    return _parse_config(path, text)


def _parse_config(path: Path, text: str) -> dict[str, str]:
    import tomllib

    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    for key, value in content.items():
        if key not in _KEYS:
            known = ", ".join(sorted(_KEYS))
            raise ConfigurationError(f"{path}: unknown key {key!r}; the keys are {known}")
        if not isinstance(value, str):
            raise ConfigurationError(f"{path}: {key} must be text in quotes")
    return content
