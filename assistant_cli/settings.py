"""Where the program finds its database, its folder and its defaults.

A command-line option beats an environment variable, which beats the config file
(`config.toml` in the home folder), which beats the default.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigurationError, NotPermittedError

_KEYS = {
    "database_url",
    "model",
    "base_url",
    "heartbeat",
    "heartbeat_hours",
    "heartbeat_tokens",
    "turn_timeout",
}

_ELSEWHERE = "set ASSISTANT_HOME to a folder of your own"


@dataclass(frozen=True)
class Settings:
    """What was configured, each with the place it came from where that helps the user.

    Attributes:
        home: the folder that holds the config file and the embedded database.
        database_url: the DSN of the user's own Postgres; None means the embedded one.
        database_source: where the DSN was found, for messages.
        model: what answers for the agents: `offline`, `command:CMD` or such as `openai:gpt-5`.
        models: what answers for an agent instead, by the agent's name.
        base_url: an OpenAI-compatible server that answers for `openai:`; None: OpenAI's.
        heartbeat: the time between two heartbeats as text, or `off`.
        heartbeat_hours: when the heartbeat may speak, such as `8:00-22:00 Europe/Berlin`, or `all`.
        heartbeat_tokens: what the heartbeat may use a day as text, or `off`.
        turn_timeout: the deadline of one turn as text.
    """

    home: Path
    database_url: str | None = None
    database_source: str = "embedded"
    model: str = "offline"
    models: Mapping[str, str] = field(default_factory=dict)
    base_url: str | None = None
    heartbeat: str = "30m"
    heartbeat_hours: str = "all"
    heartbeat_tokens: str = "250000"
    turn_timeout: str = "10m"

    @property
    def embedded(self) -> bool:
        return self.database_url is None

    def model_of(self, agent: str) -> str:
        """The name of what answers for an agent; `kind@name` has that of its kind."""
        return self.models.get(agent) or self.models.get(agent.partition("@")[0], self.model)


def load_settings(
    database_url: str | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    option: str = "--database-url",
) -> Settings:
    """Gather the settings from the option given, the environment and the config file.

    Args:
        option: what `database_url` was given as, for messages.

    Raises:
        ConfigurationError: the config file cannot be read or holds an unknown or non-text key.
        NotPermittedError: others may change the home folder, or it is another user's.
    """
    home = _home(environ)
    _require_safe(home)
    file, models = _read_config(home / "config.toml")
    url, source = _database((database_url, option), environ, file)
    model = environ.get("ASSISTANT_MODEL")

    def text(key: str, default: str) -> str:
        return environ.get(f"ASSISTANT_{key.upper()}") or file.get(key, default)

    return Settings(
        home=home,
        database_url=url,
        database_source=source,
        model=model or file.get("model", Settings.model),
        models={} if model else models,
        base_url=environ.get("ASSISTANT_BASE_URL") or file.get("base_url"),
        heartbeat=text("heartbeat", Settings.heartbeat),
        heartbeat_hours=text("heartbeat_hours", Settings.heartbeat_hours),
        heartbeat_tokens=text("heartbeat_tokens", Settings.heartbeat_tokens),
        turn_timeout=text("turn_timeout", Settings.turn_timeout),
    )


def _home(environ: Mapping[str, str]) -> Path:
    if given := environ.get("ASSISTANT_HOME"):
        try:
            return Path(given).expanduser().absolute()
        except RuntimeError:
            raise ConfigurationError(
                f"ASSISTANT_HOME is {given}, and there is no such user"
            ) from None
        except FileNotFoundError:
            raise ConfigurationError(
                f"ASSISTANT_HOME is {given}, and the folder it starts from is gone"
            ) from None
    from platformdirs import user_data_path

    return user_data_path("assistant")


def _require_safe(home: Path) -> None:
    """Refuse a home that others may change: what lies there is trusted, and says what is run."""
    real = Path(os.path.realpath(home))
    try:
        for folder in filter(_is_open, {*home.parents, *real.parents}):
            raise NotPermittedError(
                f"anybody can put another folder in the place of {home}, as {folder} is open "
                "to all; set ASSISTANT_HOME"
            )
        if not stat.S_ISDIR(home.stat().st_mode):
            raise NotADirectoryError
        # A link may be root's; what it leads to is the user's own.
        for owner in ({home.lstat().st_uid} - {0}) | {home.stat().st_uid}:
            if owner != os.geteuid():
                raise NotPermittedError(f"{home} belongs to {user_name(owner)}; {_ELSEWHERE}")
        for path in (real, real / "config.toml"):
            mode = path.stat().st_mode
            if mode & 0o022:
                cure = _ELSEWHERE if mode & stat.S_ISVTX else f"chmod go-w {path}"
                raise NotPermittedError(f"others can write to {path}; {cure}")
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigurationError(f"{home} is not a folder; {_ELSEWHERE}") from None
    except OSError as error:
        raise NotPermittedError(f"cannot use {home}: {error.strerror}; {_ELSEWHERE}") from None


def _is_open(folder: Path) -> bool:
    """Whether anybody may rename what others have made in it."""
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(mode) and bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def user_name(user: int) -> str:
    """What a user is called, for messages."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user id {user}"


def _database(
    option: tuple[str | None, str], environ: Mapping[str, str], file: Mapping[str, str]
) -> tuple[str | None, str]:
    candidates = (
        option,
        (environ.get("ASSISTANT_DATABASE_URL"), "ASSISTANT_DATABASE_URL"),
        (environ.get("DATABASE_URL"), "DATABASE_URL"),
        (file.get("database_url"), "config.toml"),
    )
    return next(((url, source) for url, source in candidates if url), (None, "embedded"))


def _read_config(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What the file sets, and the models of its table `models`."""
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}, {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error
    return _parse_config(path, text)


def _parse_config(path: Path, text: str) -> tuple[dict[str, str], dict[str, str]]:
    import tomllib

    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    models = content.pop("models", {})
    if not isinstance(models, dict):
        raise ConfigurationError(f'{path}: models is a table: [models], then agent = "model"')
    for key in content:
        if key not in _KEYS:
            known = ", ".join(sorted(_KEYS))
            raise ConfigurationError(f"{path}: unknown key {key!r}; the keys are {known}, [models]")
    texts = _texts(path, content)
    for key in texts:
        _check_form(path, key, texts[key])
    return texts, _texts(path, models)


def _check_form(path: Path, key: str, text: str) -> None:
    from .active_hours import parse_active_hours
    from .durations import parse_duration, parse_interval

    parsers: dict[str, Callable[[str], object]] = {
        "heartbeat": parse_interval,
        "heartbeat_hours": parse_active_hours,
        "heartbeat_tokens": parse_daily_tokens,
        "turn_timeout": parse_duration,
    }
    try:
        if key in parsers:
            parsers[key](text)
    except ValueError as error:
        raise ConfigurationError(f"{path}: {key}: {error}") from None


def parse_daily_tokens(text: str) -> int | None:
    """Read a number of tokens such as `250000`; None for `off`.

    Raises:
        ValueError: it is neither.
    """
    if text == "off":
        return None
    if not re.fullmatch(r"[0-9][0-9_]{0,17}", text, re.ASCII):
        raise ValueError(f"{text!r} is no number of tokens; write it like 250000 or off")
    return int(text)


def _texts(path: Path, table: dict[str, Any]) -> dict[str, str]:
    for key, value in table.items():
        count = key == "heartbeat_tokens" and type(value) is int
        if not (isinstance(value, str) or count):
            raise ConfigurationError(f"{path}: {key} must be text in quotes")
    return {key: str(value) for key, value in table.items()}
