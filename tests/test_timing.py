"""When schedules are due: times of day and lines of cron, by the clock of a zone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from assistant_cli.timing import (
    Timing,
    elapse,
    host_zone,
    plan,
    plan_at,
    plan_cron,
    plan_every,
    split_at,
)

BERLIN = "Europe/Berlin"
NEW_YORK = "America/New_York"

# A Saturday evening in Berlin, hours before its clocks go forward.
SATURDAY = datetime(2026, 3, 28, 21, 30, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


def wall(zone: str, text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def cron_walls(line: str, zone: str, start: str, count: int) -> list[str]:
    """The next times of a cron line, each fired on time, as the zone's clock shows them."""
    timing = plan_cron(line, zone, wall(zone, start))
    found = []
    for _ in range(count):
        found.append(timing.due_at.astimezone(ZoneInfo(zone)).strftime("%d %H:%M %Z"))
        following = elapse(timing, timing.due_at).following
        assert following is not None
        timing = Timing("cron", timing.spec, zone, following)
    return found


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("2h", "2026-03-29T00:30:20+01:00"),
        ("in 5h", "2026-03-29T04:30:20+02:00"),
        ("23:00", "2026-03-28T23:00:00+01:00"),
        ("22:30", "2026-03-29T22:30:00+02:00"),
        ("at 9pm", "2026-03-29T21:00:00+02:00"),
        ("12am", "2026-03-29T00:00:00+01:00"),
        ("Tomorrow  9:00", "2026-03-29T09:00:00+02:00"),
        ("tomorrow at 9:30am", "2026-03-29T09:30:00+02:00"),
        ("friday 14:00", "2026-04-03T14:00:00+02:00"),
        ("sat 23:00", "2026-03-28T23:00:00+01:00"),
        ("saturday 22:00", "2026-04-04T22:00:00+02:00"),
        ("2026-12-24 9:00", "2026-12-24T09:00:00+01:00"),
        ("2026-12-24T18:00:00Z", "2026-12-24T19:00:00+01:00"),
        ("2026-12-24T18:00+05:00", "2026-12-24T14:00:00+01:00"),
        ("2026-03-29 02:30", "2026-03-29T03:00:00+02:00"),
        ("2026-10-25 02:30", "2026-10-25T02:30:00+02:00"),
    ],
)
def test_a_time_is_of_the_zones_clock(text: str, due: str) -> None:
    timing = plan_at(text, BERLIN, SATURDAY)
    assert timing == Timing("at", None, BERLIN, datetime.fromisoformat(due).astimezone(UTC))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        *((text, "is not a time; write it like 2h, ") for text in ("", "tea", "10", "noonish")),
        *((text, "is not a time") for text in ("tomorrow at 9", "25:00", "13pm", "tea 9:00")),
        *((text, "is not a time") for text in ("2026-02-30 9:00", "2026-12-24 18:00 tea")),
        ("2026-12-2\u0664 18:00", "is not a time"),
        ("0001-01-01 00:00", "is not a time"),
        ("today 9:00", "is over already"),
        ("2026-03-28 22:30", "is over already"),
        ("9999-12-31 23:59", "ten years is the limit"),
    ],
)
def test_what_is_no_time_to_come_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plan_at(text, BERLIN, SATURDAY)


@pytest.mark.parametrize(
    "line",
    [
        *("", "* * * *", "@daily", "61 * * * *", "a b c d e", "*/0 * * * *", "0 0 30 2 *"),
        *("0 0 1 1 * *", "* * * * 5L/2", f"1{'0' * 5_000} * * * *", "0 0 L-3 * *"),
    ],
)
def test_what_is_no_cron_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="minute, hour, day of month, month and day of week"):
        plan_cron(line, BERLIN, SATURDAY)


@pytest.mark.parametrize("zone", ["", "Nowhere", "Europe", "../etc/passwd", "/etc/passwd", "\x00"])
def test_what_is_no_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match=r"there is no time zone .*Europe/Berlin or UTC"):
        plan_cron("0 9 * * *", zone, SATURDAY)


@pytest.mark.parametrize(("variable", "name"), [("Asia/Tokyo", "Asia/Tokyo"), ("XYZ-5:17", None)])
def test_the_hosts_zone_is_known_by_its_name_if_it_has_one(
    in_zone: Callable[[str], None], variable: str, name: str | None
) -> None:
    in_zone(variable)
    assert host_zone(SATURDAY) == name


def test_a_zone_without_a_name_is_enough_for_a_single_time_but_not_for_cron(
    in_zone: Callable[[str], None],
) -> None:
    # The rules of Berlin, written out.
    in_zone("CET-1CEST,M3.5.0,M10.5.0/3")
    for text in ("9:00", "2026-03-29 02:30", "2026-10-25 02:30", "friday 9am", "2h"):
        expected = plan_at(text, BERLIN, SATURDAY).due_at
        assert plan_at(text, None, SATURDAY) == Timing("at", None, None, expected)
    with pytest.raises(ValueError, match="name of this host's time zone is not known"):
        plan_cron("0 9 * * *", None, SATURDAY)


@pytest.mark.parametrize(
    ("text", "when", "rest"),
    [
        ("10m stretch", "10m", "stretch"),
        ("14:30 tea", "14:30", "tea"),
        ("9:30 pm tea", "9:30pm", "tea"),
        ("9:30 pmtea", "9:30", "pmtea"),
        ("tomorrow 9:00 call mum", "tomorrow 9:00", "call mum"),
        ("tomorrow9:00 tea", "tomorrow 9:00", "tea"),
        ("  Friday at 9  am\n tea\n\nand  cake \n", "friday 9am", "tea\n\nand  cake"),
        ("2026-12-24 18:00 2h of gifts", "2026-12-24 18:00", "2h of gifts"),
        ("2026-12-24T18:00+01:00 gifts", "2026-12-24 18:00", "gifts"),
    ],
)
def test_a_text_is_split_after_the_longest_time(text: str, when: str, rest: str) -> None:
    assert split_at(text, BERLIN, SATURDAY) == (plan_at(when, BERLIN, SATURDAY), rest)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        *((text, "write when, and then what; when is like 2h, ") for text in ("", "tea", "9:00")),
        *((text, "when is like 2h, ") for text in ("tomorrow 9:00 ", "tea at 9:00", "25:00 tea")),
        ("today 9:00 tea", "'today 9:00' is over already"),
        ("9999-12-31 23:59 tea", "ten years is the limit"),
    ],
)
def test_a_text_without_a_time_to_come_is_not_split(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        split_at(text, BERLIN, SATURDAY)


def test_one_reading_knows_times_intervals_and_cron_lines() -> None:
    assert plan("tomorrow 9:00", BERLIN, SATURDAY) == plan_at("tomorrow 9:00", BERLIN, SATURDAY)
    assert plan(" Every  2H ", BERLIN, SATURDAY) == plan_every("2h", SATURDAY)
    for line in ("0 9 * * MON-FRI", "*/15 * * * *"):
        assert plan(line, BERLIN, SATURDAY) == plan_cron(line, BERLIN, SATURDAY)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("every", "'' is not a duration"),
        ("every friday 9:00", "'friday 9:00' is not a duration"),
        ("61 * * * *", "is not a cron line: bad minute"),
        ("* * * *", "is not a time"),
        ("the day after tomorrow 9:00", "is not a time"),
        ("", "is not a time"),
    ],
)
def test_what_one_reading_does_not_know_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plan(text, BERLIN, SATURDAY)


@pytest.mark.parametrize(
    ("zone", "night", "day_after", "after_gap"),
    [
        (BERLIN, "2026-03-28 12:00", 30, "29 03:00 CEST"),
        (NEW_YORK, "2026-03-07 12:00", 9, "08 03:00 EDT"),
    ],
)
def test_a_cron_time_in_the_gap_comes_once_right_after_it(
    zone: str, night: str, day_after: int, after_gap: str
) -> None:
    summer = after_gap.rsplit(maxsplit=1)[-1]
    later = f"{day_after:02} 02:30 {summer}"
    assert cron_walls("30 2 * * *", zone, night, 2) == [after_gap, later]


@pytest.mark.parametrize(
    ("zone", "night", "hour", "names"),
    [
        (BERLIN, "2026-10-24 12:00", 2, ("25 02:30 CEST", "26 02:30 CET")),
        (NEW_YORK, "2026-10-31 12:00", 1, ("01 01:30 EDT", "02 01:30 EST")),
    ],
)
def test_a_cron_time_that_comes_twice_fires_the_first_time_only(
    zone: str, night: str, hour: int, names: tuple[str, str]
) -> None:
    assert cron_walls(f"30 {hour} * * *", zone, night, 2) == list(names)


def test_a_cron_time_asked_for_in_the_second_round_of_an_hour_is_tomorrows() -> None:
    second_round = wall(BERLIN, "2026-10-25 02:10") + HOUR
    assert plan_cron("30 2 * * *", BERLIN, second_round).due_at == wall(BERLIN, "2026-10-26 02:30")


def test_every_hour_is_every_hour_also_when_the_clocks_change() -> None:
    spring = cron_walls("0 * * * *", BERLIN, "2026-03-29 00:30", 3)
    assert spring == ["29 01:00 CET", "29 03:00 CEST", "29 04:00 CEST"]
    autumn = cron_walls("0 * * * *", BERLIN, "2026-10-25 01:30", 3)
    assert autumn == ["25 02:00 CEST", "25 02:00 CET", "25 03:00 CET"]


def test_far_too_many_missed_times_are_counted_up_to_a_bound() -> None:
    timing = plan_cron("* * * * *", "UTC", SATURDAY)
    now = SATURDAY + timedelta(days=3650)
    elapsed = elapse(timing, now)
    assert elapsed.count == 5_000
    assert elapsed.following == datetime(2036, 3, 25, 21, 31, tzinfo=UTC)
