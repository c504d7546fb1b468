"""Strict JSON: what goes into the store is exactly what comes out, or it is refused.

Python's own reader accepts NaN, lets the last of two equal keys win and rounds long decimals;
Postgres refuses NUL and lone surrogates. Values are checked here and travel as text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import BadDataError

MAX_VALUE_BYTES = 1_000_000
MAX_NESTING = 100
MAX_KEY_BYTES = 512

# jsonb keeps numbers as numeric: 131,072 digits before the point, 16,383 after.
_MAX_DIGITS = 131_072
_MAX_FRACTION_DIGITS = 16_383
_NUMBER = re.compile(r"-?(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?", re.ASCII)
_SPACES = re.compile(r'("(?:[^"\\]|\\.)*")|[ \t\r\n]+')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_json(text: str) -> None:
    """Check that a text is one strict JSON document that Postgres keeps unchanged.

    Raises:
        BadDataError: it is not, with the reason.
    """
    _check_size(text)
    _check_depth_and_texts(text, _parse(text))


def check_entry_line(line: str) -> None:
    """Check a line of the export format, `{"key": "k", "value": …}`.

    Raises:
        BadDataError: it is not such an object, or its key or value is refused.
    """
    _check_size(line, MAX_VALUE_BYTES + 8 * MAX_KEY_BYTES)
    entry = _parse(line)
    if not isinstance(entry, dict) or entry.keys() != {"key", "value"}:
        raise BadDataError('not an object like {"key": "k", "value": …}')
    if not isinstance(entry["key"], str):
        raise BadDataError("the key is not text")
    check_key(entry["key"])
    _check_depth_and_texts(line, entry["value"])


def dump_json(value: Any) -> str:
    """Write a Python value as strict JSON text.

    Floats take Python's shortest form; tuples become arrays.

    Raises:
        BadDataError: the value holds what JSON cannot express, such as NaN or a non-text key.
    """
    _check_tree(value)
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadDataError(f"this value is not JSON: {error}") from None
    _check_size(text)
    return text


def load_json(text: str) -> Any:
    """Read JSON text that came from the store into plain Python values.

    Raises:
        BadDataError: another program stored what Python cannot hold, such as a number of
            5,000 digits; the raw text is still readable.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"Python cannot hold this value: {error}; read it as text") from None


def check_key(key: str) -> None:
    """Check that a key is 1 to 512 bytes of printable UTF-8.

    Raises:
        BadDataError: it is not.
    """
    size = _utf8_size(key, "the key")
    if not 1 <= size <= MAX_KEY_BYTES:
        raise BadDataError(f"a key has 1 to {MAX_KEY_BYTES} bytes; this one has {size}")
    if _CONTROL.search(key):
        raise BadDataError("a key holds no control characters")


def check_utf8(text: str, what: str) -> None:
    """Check that a text, such as a prefix or a path, is valid UTF-8.

    Raises:
        BadDataError: it is not.
    """
    _utf8_size(text, what)


def check_text(text: str) -> None:
    """Check that a text is one that a JSON value can hold.

    Raises:
        BadDataError: it holds NUL, or half of a surrogate pair.
    """
    if "\x00" in text:
        raise BadDataError("the database cannot keep the character \\u0000")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadDataError("text with half of a surrogate pair is not valid Unicode") from None


def _check_size(text: str, limit: int = MAX_VALUE_BYTES) -> None:
    size = _utf8_size(text, "the value")
    # Spaces between tokens do not count: Postgres adds them, and what came out must go in again.
    if limit < size <= 2 * limit:
        size = _utf8_size(_SPACES.sub(r"\1", text), "the value")
    if size > limit:
        raise BadDataError(f"a value has at most {MAX_VALUE_BYTES:,} bytes; this one has {size:,}")


def _utf8_size(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise BadDataError(f"{what} is not valid UTF-8") from None


def _check_depth_and_texts(text: str, value: Any) -> None:
    """Walk a value that was read from a text; a text with no escape and few brackets needs none."""
    if "\\u" in text or text.count("{") + text.count("[") > MAX_NESTING:
        _check_tree(value)


def _parse(text: str) -> Any:
    try:
        return (_BRIEF_DECODER if len(text) < _BRIEF else _DECODER).decode(text)
    except json.JSONDecodeError as error:
        line = "" if error.lineno == 1 else f"line {error.lineno} "
        place = f"{line}column {error.colno}"
        raise BadDataError(f"not JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise BadDataError(f"JSON is nested more than {MAX_NESTING} deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadDataError("not JSON: an object has the same key twice")
    return found


def _refuse_constant(name: str) -> None:
    raise BadDataError(f"not JSON: {name} is not a JSON number")


def _check_number(text: str) -> int:
    match = _NUMBER.fullmatch(text)
    assert match is not None
    # Exponents beyond nine digits are out of range whatever the mantissa; int() stays cheap.
    exponent_text = match[3] or "0"
    exponent = int(exponent_text) if len(exponent_text) < 10 else 10**9
    if (
        len(match[1]) + exponent > _MAX_DIGITS
        or len(match[2] or "") - exponent > _MAX_FRACTION_DIGITS
    ):
        raise BadDataError("a number is out of the database's range")
    return 0


_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False)
_BRIEF = 4_000
"""A text shorter than this has no integer with too many digits for Python (4,300) or the database,
so that its integers need no check of their own."""

_HOOKS: dict[str, Any] = {
    "object_pairs_hook": _unique,
    "parse_constant": _refuse_constant,
    "parse_float": _check_number,
}
_BRIEF_DECODER = json.JSONDecoder(**_HOOKS)
_DECODER = json.JSONDecoder(**_HOOKS, parse_int=_check_number)


def _check_tree(value: Any, depth: int = 0) -> None:
    """Check the texts in a value, the keys of its objects, and how deep it is nested."""
    match value:
        case str():
            check_text(value)
        case dict() | list() | tuple() if depth == MAX_NESTING:
            raise BadDataError(f"JSON is nested more than {MAX_NESTING} deep")
        case dict():
            for key, child in value.items():
                if not isinstance(key, str):
                    raise BadDataError(f"not JSON: the key {key!r} is not text")
                check_text(key)
                _check_tree(child, depth + 1)
        case list() | tuple():
            for child in value:
                _check_tree(child, depth + 1)
