"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from assistant_cli.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("250ms", 0.25)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "abc", "-1", "-1s", "5", "1 h", "1x", "9" * 400 + "d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|long"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0085, "8ms"), (12, "12s"), (250, "4m10s"), (266_400, "3d2h"), (60, "1m")],
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text
