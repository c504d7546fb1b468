"""When a schedule is due: at one time, every so often, or as a cron line says.

Times are instants in UTC. A line of cron and a time of day mean a zone's wall clock: where it
skips that time, the instant right after the gap counts; where it shows it twice, the first. As
in Debian's cron, a line whose minute or hour starts with `*` follows elapsed time instead, so
that every hour means every hour.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Literal

from .durations import parse_duration

Kind = Literal["at", "every", "cron"]

_FURTHEST = timedelta(days=3660)
_SHORTEST_INTERVAL = timedelta(minutes=1)
_MOST_COUNTED = 5_000
_MOST_WORDS = 4
_AT_FORMS = (
    "like 2h, 14:30, 9am, tomorrow 9:00, friday 14:00, 2026-12-24 18:00 or 2026-12-24T18:00+01:00"
)
_CRON_FORMS = (
    "write minute, hour, day of month, month and day of week, like '0 9 * * 1-5' or '*/15 * * * *'"
)
_ZONE_FORMS = "write it like Europe/Berlin or UTC"
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[t ](\d{1,2}):(.+)", re.ASCII)
_WALL_TIME = re.compile(
    r"(?:(?!at\b)(?P<day>[a-z]+)\s*)?(?:at\s+)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>am|pm)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Timing:
    """A kind of timing with its next due time.

    Attributes:
        spec: the duration or the cron line; None for a single time.
        zone: the IANA name of the zone whose wall clock counts; None where none does.
    """

    kind: Kind
    spec: str | None
    zone: str | None
    due_at: datetime


@dataclass(frozen=True)
class Elapsed:
    """The due times from one that has come until now.

    Attributes:
        count: how many, at most 5,000 of a cron line.
        last: the last of them; of a cron line with more, the last one counted.
        following: the next after now; None where there is none.
    """

    count: int
    last: datetime
    following: datetime | None


def plan(text: str, zone: str | None, now: datetime) -> Timing:
    """A single time, `every` with a duration, or a cron line.

    Raises:
        ValueError: it is none of them, or `plan_at`, `plan_every` or `plan_cron` refuses it.
    """
    words = text.split()
    if words[:1] and words[0].lower() == "every":
        return plan_every(" ".join(words[1:]).lower(), now)
    if len(words) == 5 and words[0][0] in "*0123456789":
        return plan_cron(text, zone, now)
    return plan_at(text, zone, now)


def split_at(text: str, zone: str | None, now: datetime) -> tuple[Timing, str]:
    """The single time that a text begins with, as long as can be, and the rest of the text.

    Raises:
        ValueError: it begins with none, nothing follows, or `plan_at` refuses the time.
    """
    for count in range(_MOST_WORDS, 0, -1):
        words = text.split(maxsplit=count)
        when = " ".join(words[:count])
        if len(words) > count and _parse_moment(when.lower(), zone, now) is not None:
            return plan_at(when, zone, now), words[count].strip()
    raise ValueError(f"write when, and then what; when is {_AT_FORMS}")


def plan_at(text: str, zone: str | None, now: datetime) -> Timing:
    """A single time such as `2h`, `tomorrow 9:00` or `2026-12-24 18:00`, in the zone.

    Args:
        zone: None for the host's wall clock, whatever its name.

    Raises:
        ValueError: it is no time, is over, or is more than ten years off.
    """
    moment = _parse_moment(" ".join(text.split()).lower(), zone, now)
    if moment is None:
        raise ValueError(f"{text!r} is not a time; write it {_AT_FORMS}")
    if moment <= now:
        raise ValueError(f"{text!r} is over already")
    if moment > now + _FURTHEST:
        raise ValueError(f"{text!r} is too far off; ten years is the limit")
    return Timing("at", None, zone, moment)


def plan_every(text: str, now: datetime) -> Timing:
    """Every so often, for the first time after that time from now.

    Raises:
        ValueError: it is not a duration of at least a minute, as often as a cron line can say.
    """
    interval = parse_duration(text)
    if interval < _SHORTEST_INTERVAL:
        raise ValueError(f"{text!r} is too often; one minute is the least")
    return Timing("every", text, None, now + interval)


def plan_cron(line: str, zone: str | None, now: datetime) -> Timing:
    """As a cron line of five fields says, in the zone.

    Raises:
        ValueError: it is not one, its time never comes, or the zone is None.
    """
    if zone is None:
        raise ValueError(f"the name of this host's time zone is not known; {_ZONE_FORMS}")
    line = " ".join(line.split())
    due_at = next(_cron_times(line, zone, now), None)
    if due_at is None:
        raise ValueError(f"{line!r} is never due; {_CRON_FORMS}")
    return Timing("cron", line, zone, due_at)


def elapse(timing: Timing, now: datetime) -> Elapsed:
    """The due times that have come since the timing's own, which has.

    Raises:
        ValueError: what is stored cannot be understood.
    """
    if timing.kind == "every":
        step = parse_duration(timing.spec or "")
        passed = (now - timing.due_at) // step
        last = timing.due_at + passed * step
        return Elapsed(passed + 1, last, last + step)
    if timing.kind == "cron":
        return _elapse_cron(timing, now)
    return Elapsed(1, timing.due_at, None)


def check_zone(name: str) -> tzinfo:
    """The zone of a name such as `Europe/Berlin`.

    Raises:
        ValueError: there is none.
    """
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name!r}; {_ZONE_FORMS}") from None


def host_zone(now: datetime) -> str | None:
    """The name of the zone that this host's wall clock shows; None where it is not known."""
    from tzlocal import get_localzone_name, reload_localzone

    try:
        # It keeps what it found before; and warns where it finds none.
        with warnings.catch_warnings(action="ignore"):
            reload_localzone()
        name: str | None = get_localzone_name()
        shown = name and now.astimezone(check_zone(name)).utcoffset()
    except (KeyError, ValueError):
        return None
    # TZ may hold a rule instead of a name, which tzlocal passes over.
    return name if shown == now.astimezone().utcoffset() else None


def _elapse_cron(timing: Timing, now: datetime) -> Elapsed:
    line, zone = timing.spec or "", timing.zone or "UTC"
    count, last = 1, timing.due_at
    for moment in _cron_times(line, zone, timing.due_at):
        if moment > now:
            return Elapsed(count, last, moment)
        if count == _MOST_COUNTED:
            return Elapsed(count, last, next(_cron_times(line, zone, now), None))
        count, last = count + 1, moment
    return Elapsed(count, last, None)


def _cron_times(line: str, zone: str, after: datetime) -> Iterator[datetime]:
    from cronsim import CronSim, CronSimError

    if len(line.split()) != 5:
        raise ValueError(f"{line!r} is not a cron line; {_CRON_FORMS}")
    where = check_zone(zone)
    try:
        times = CronSim(line, after.astimezone(where))
    except CronSimError as error:
        reason = str(error).lower()
        raise ValueError(f"{line!r} is not a cron line: {reason}; {_CRON_FORMS}") from None
    except (AssertionError, TypeError, ValueError):
        # cronsim stumbles over some of what it does not know.
        raise ValueError(f"{line!r} is not a cron line; {_CRON_FORMS}") from None
    for local in times:
        moment = local.astimezone(UTC)
        # From within an hour that comes twice, a time of its first round is found again.
        if moment > after:
            yield moment


def _parse_moment(text: str, zone: str | None, now: datetime) -> datetime | None:
    where = None if zone is None else check_zone(zone)
    try:
        return now + parse_duration(text.removeprefix("in "))
    except ValueError:
        pass
    try:
        if match := _ISO_TIME.fullmatch(text):
            moment = datetime.fromisoformat(f"{match[1]}T{match[2]:0>2}:{match[3].upper()}")
            return moment.astimezone(UTC) if moment.tzinfo else _instant(moment, where)
        return _next_wall_time(text, where, now)
    except (ValueError, OverflowError):
        return None


def _next_wall_time(text: str, where: tzinfo | None, now: datetime) -> datetime | None:
    match = _WALL_TIME.fullmatch(text)
    if match is None or not (match["minute"] or match["half"]):
        return None
    hour = int(match["hour"])
    if match["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if match["half"] == "pm" else 0)
    wall_time = time(hour, int(match["minute"] or 0))
    today = now.astimezone(where).date()
    for days in _days_ahead(match["day"], today.weekday()):
        moment = _instant(datetime.combine(today + timedelta(days), wall_time), where)
        if moment > now or match["day"] in {"today", "tomorrow"}:
            return moment
    return None


def _days_ahead(day: str | None, weekday: int) -> tuple[int, ...]:
    """On which of the days from today a time of day may be meant, the first that is to come."""
    if day is None:
        return (0, 1)
    if day in {"today", "tomorrow"}:
        return (int(day == "tomorrow"),)
    meant = [index for index, name in enumerate(_DAYS) if day in {name, name[:3]}]
    ahead = tuple((index - weekday) % 7 for index in meant)
    return (*ahead, *(days + 7 for days in ahead))


def _instant(wall: datetime, where: tzinfo | None) -> datetime:
    """When the wall clock of a zone, or of the host, first shows a time, or skips it."""
    while True:
        moment = wall.replace(tzinfo=where).astimezone(UTC)
        if moment.astimezone(where).replace(tzinfo=None) == wall:
            return moment
        wall += timedelta(minutes=1)
