"""Durations as people write them: `90s`, `30m`, `2h`, `1d`, `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", re.ASCII)
_LONGEST = timedelta(days=3660)


def parse_duration(text: str) -> timedelta:
    """Read a positive duration such as `90s` or `1h30m`, at most ten years.

    Raises:
        ValueError: the text is not a duration, is zero, or is too long.
    """
    parts = list(_PART.finditer(text))
    if not parts or "".join(part.group() for part in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write it like 90s, 30m or 2h")
    seconds = sum(float(part[1]) * _UNITS[part[2]] for part in parts)
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time at all; a duration is more than zero")
    if seconds > _LONGEST.total_seconds():
        raise ValueError(f"{text!r} is too long; ten years is the limit")
    return timedelta(seconds=seconds)


def parse_interval(text: str) -> timedelta | None:
    """Read the time between two heartbeats, at least a second; None for `off`.

    Raises:
        ValueError: it is neither.
    """
    if text == "off":
        return None
    interval = parse_duration(text)
    if interval < timedelta(seconds=1):
        raise ValueError(f"{text!r} is too often; one second is the least")
    return interval


def format_duration(duration: timedelta) -> str:
    """Write a duration short, with its two largest units: `850ms`, `12s`, `4m10s`, `3d2h`."""
    seconds = duration.total_seconds()
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    rest = int(seconds)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_UNITS[unit]))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])
