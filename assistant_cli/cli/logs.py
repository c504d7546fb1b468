"""The log on stderr: one line an event, as text or as JSON, whoever logs it."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from .output import iso, show_json, show_line

LogFormat = Literal["brief", "text", "json"]

_FIELDS = ("agent", "turn", "outcome", "seconds")


def log_to_stderr(level: int, form: LogFormat) -> None:
    """Write what the library logs to stderr, and the warnings of others; the first call counts.

    Args:
        level: of our own events; others are heard from WARNING on.
        form: `brief` is for people at a terminal, without times.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATTERS[form]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
    # It warns of connections that this program itself has closed.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    own = logging.getLogger("assistant_cli")
    if own.level == logging.NOTSET:
        own.setLevel(level)


def json_line(moment: datetime, level: str, event: str, **fields: object) -> str:
    """An event as a JSON object on one line."""
    document = {"time": iso(moment), "level": level, "event": event, **fields}
    return show_json(json.dumps(document))


class _Formatter(logging.Formatter):
    """What happened, and for an error of the program itself where."""

    def event(self, record: logging.LogRecord) -> str:
        event = record.getMessage()
        if record.name == "py.warnings":
            event = event.partition("\n")[0]
        return f"{event}: {where}" if (where := _where(record)) else event


class _Brief(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"assistant: {show_line(self.event(record))}"


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{iso(_moment(record))} {record.levelname} {show_line(self.event(record))}"


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        given = {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        return json_line(_moment(record), record.levelname, self.event(record), **given)


_FORMATTERS = {"brief": _Brief, "text": _Text, "json": _Json}


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _where(record: logging.LogRecord) -> str:
    """The kind of an error and the way to it; its text may hold what is nobody's to read."""
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    kind, _, trace = record.exc_info
    frames = traceback.extract_tb(trace)
    way = " > ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)
    return f"{kind.__name__} at {way}"
