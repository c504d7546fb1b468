"""The hours of a day in which the heartbeat may speak, by a zone's wall clock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time

from .timing import check_zone

_FORM = re.compile(r"(\d{1,2})(?::(\d\d))?-(\d{1,2})(?::(\d\d))?(?:\s+(\S+))?", re.ASCII)


@dataclass(frozen=True)
class ActiveHours:
    """From `start` until before `end`, past midnight where `end` is the earlier.

    `zone`: an IANA name; None: the host's.
    """

    start: time
    end: time
    zone: str | None = None

    def include(self, now: datetime) -> bool:
        """Whether a time lies within them."""
        wall = _on_the_wall(now, self.zone).time()
        if self.start < self.end:
            return self.start <= wall < self.end
        return wall >= self.start or wall < self.end

    def __str__(self) -> str:
        hours = f"{self.start:%H:%M}-{self.end:%H:%M}"
        return f"{hours} {self.zone}" if self.zone else hours


def parse_active_hours(text: str) -> ActiveHours | None:
    """Read hours such as `8:00-22:00 Europe/Berlin`; None for `all`.

    Raises:
        ValueError: it is neither.
    """
    if text == "all":
        return None
    match = _FORM.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        start, end = _time(match[1], match[2]), _time(match[3], match[4])
    except ValueError:
        raise ValueError(
            f"{text!r} are no hours of a day; write them like 8:00-22:00, "
            "8:00-22:00 Europe/Berlin or all"
        ) from None
    if start == end:
        raise ValueError(f"{text!r} is no time at all; write all for the whole day")
    if match[5]:
        check_zone(match[5])
    return ActiveHours(start, end, match[5])


def start_of_day(now: datetime, zone: str | None = None) -> datetime:
    """The midnight before a time, by a zone's wall clock; None: the host's."""
    return _on_the_wall(now, zone).replace(hour=0, minute=0, second=0, microsecond=0)


def _on_the_wall(now: datetime, zone: str | None) -> datetime:
    return now.astimezone(check_zone(zone) if zone else None)


def _time(hour: str, minute: str | None) -> time:
    return time(0 if hour == "24" and not int(minute or 0) else int(hour), int(minute or 0))
