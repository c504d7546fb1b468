"""Strict JSON: what goes in comes out, or is refused with a reason."""

from __future__ import annotations

import pytest

from assistant_cli.errors import BadDataError
from assistant_cli.json_values import check_json, check_key, dump_json, load_json


@pytest.mark.parametrize(
    "text",
    [
        "null",
        '"text"',
        "-0",
        "1e16",
        "1.10",
        "0.1e-100",
        "9" * 5000,
        '{"a": [1, {"b": null}]}',
        "[" * 100 + "]" * 100,
        '"\\ud83d\\ude00"',
    ],
)
def test_strict_json_is_accepted(text: str) -> None:
    check_json(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello", "not JSON"),
        ("", "not JSON"),
        ("NaN", "NaN"),
        ("[Infinity]", "Infinity"),
        ("-Infinity", "Infinity"),
        ('{"a": 1, "a": 2}', "same key twice"),
        ('"\\u0000"', "u0000"),
        ('{"\\u0000": 1}', "u0000"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[" * 101 + "]" * 101, "100 deep"),
        ("[" * 100_000 + "]" * 100_000, "100 deep"),
        ('"' + "x" * 1_000_000 + '"', "at most 1,000,000 bytes"),
        ("1e200000", "range"),
        ("1e-99999999999999999999", "range"),
        ("1 2", "not JSON"),
        ("'a'", "not JSON"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(BadDataError, match=reason):
        check_json(text)


def test_spaces_that_the_database_adds_do_not_make_a_value_too_large() -> None:
    compact = "[" + ",".join("1" * 499_999) + "]"
    assert len(compact) < 1_000_000
    check_json(compact)
    check_json(compact.replace(",", ", "))


@pytest.mark.parametrize("value", [float("nan"), {1: "a"}, {True: 1}, {"a": {None: 1}}, {1, 2}])
def test_python_values_that_json_cannot_express_are_refused(value: object) -> None:
    with pytest.raises(BadDataError):
        dump_json(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[object] = []
    endless += [endless, endless]
    with pytest.raises(BadDataError):
        dump_json(endless)


def test_stored_numbers_that_python_cannot_hold_are_a_clear_error() -> None:
    with pytest.raises(BadDataError, match="read it as text"):
        load_json("1" * 5000)


@pytest.mark.parametrize("key", ["k", "a/b c", "ключ", "x" * 512])
def test_keys_of_printable_text_are_accepted(key: str) -> None:
    check_key(key)


@pytest.mark.parametrize("key", ["", "x" * 513, "я" * 257, "a\nb", "a\x00", "\x9b", "\udc80"])
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(BadDataError):
        check_key(key)
