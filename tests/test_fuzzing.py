"""Documents and command lines that nobody thought of.

The examples are the same each time; `FUZZ_EXAMPLES=10000 pytest tests/test_fuzzing.py` looks at
others, and at so many.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assistant_cli.cli.app import create_app
from assistant_cli.errors import BadDataError
from assistant_cli.json_values import check_json
from assistant_cli.store.database import Database

from .conftest import CommandLine
from .hosting import rows


def fuzzed(examples: int) -> settings:
    """So many examples, or as many others as the environment asks for."""
    wanted = os.environ.get("FUZZ_EXAMPLES")
    return settings(
        max_examples=int(wanted or examples),
        derandomize=wanted is None,
        database=None,
        deadline=None,
        # Examples may share what a test is given: each has keys of its own, or changes nothing.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NUMBERS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?", fullmatch=True
)
SPACES = st.sampled_from(["", " ", "\n", "\t \r\n"])


def quoted(text: str) -> st.SearchStrategy[str]:
    """A text as JSON, in the two ways there are."""
    return st.booleans().map(lambda ascii_only: json.dumps(text, ensure_ascii=ascii_only))


def arrays(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    parts = st.tuples(st.lists(values, max_size=5), SPACES)
    return parts.map(lambda found: f"[{found[1]}{(',' + found[1]).join(found[0])}]")


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    parts = st.tuples(st.dictionaries(TEXTS, values, max_size=5), SPACES)
    return parts.map(
        lambda found: (
            "{" + ",".join(f"{json.dumps(k)}{found[1]}:{v}" for k, v in found[0].items()) + "}"
        )
    )


DOCUMENTS = st.recursive(
    st.sampled_from(["null", "true", "false"]) | NUMBERS | TEXTS.flatmap(quoted),
    lambda values: arrays(values) | objects(values),
    max_leaves=20,
)
PIECES = st.sampled_from(
    [
        *"{}[],:-+.eE0123 \"'/\\\n\t\0\xa0\ufeff\ud800",
        *('"a"', '"b":', "null", "true", "NaN", "Infinity", "00", "1e9"),
        *(r"\u0000", r"\ud800", r"\udc00", r"\x", r'"\u0061"'),
    ]
)
PERHAPS_DOCUMENTS = (
    st.lists(PIECES, max_size=8).map("".join)
    | st.tuples(DOCUMENTS, st.integers(0, 30), PIECES).map(
        lambda d: d[0][: d[1]] + d[2] + d[0][d[1] :]
    )
    | st.text(max_size=10)
)


def digits(text: str) -> Any:
    """A document in which numbers are what Postgres writes for them."""

    def number(written: str) -> str:
        plain = format(Decimal(written), "f")
        return plain.removeprefix("-") if Decimal(written) == 0 else plain

    return json.loads(text, parse_int=number, parse_float=number)


@fuzzed(150)
@given(document=DOCUMENTS)
async def test_every_document_comes_out_as_it_went_in(database: Database, document: str) -> None:
    await database.kv.set_text("k", document)
    (stored,) = await database.kv.get_text("k")
    assert digits(stored) == digits(document)
    await database.kv.set_text("k", stored)
    assert await database.kv.get_text("k") == [stored]


@fuzzed(300)
@given(text=PERHAPS_DOCUMENTS)
async def test_what_is_a_document_is_what_the_database_says(database: Database, text: str) -> None:
    try:
        check_json(text)
    except BadDataError:
        assert not await is_document(database, text)
        with pytest.raises(BadDataError):
            await database.kv.set_text("k", text)
    else:
        assert await is_document(database, text)
        await database.kv.set_text("k", text)


async def is_document(database: Database, text: str) -> bool:
    """Whether Postgres takes a text, in which no key comes twice."""
    try:
        (accepted,) = await rows(
            database,
            "SELECT pg_input_is_valid(%s, 'jsonb') AND %s IS JSON WITH UNIQUE KEYS",
            text,
            text,
        )
    except (UnicodeError, BadDataError):
        return False
    return bool(accepted)


@fuzzed(150)
@given(key=st.text(max_size=150))
async def test_a_key_is_kept_as_it_is_or_refused(database: Database, key: str) -> None:
    try:
        await database.kv.set(key, "v")
    except BadDataError:
        with pytest.raises(BadDataError):
            await database.kv.get(key)
    else:
        assert await database.kv.get(key) == "v"
        assert key in await database.kv.list_keys()
        await database.kv.delete(key)


@pytest.fixture(scope="module")
def without_database(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """The command line where nobody answers as the database."""
    home = tmp_path_factory.mktemp("home")
    return CommandLine(
        {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ASSISTANT_HOME": str(home / "assistant"),
            "ASSISTANT_DATABASE_URL": "postgresql://u@127.0.0.1:1/x",
        }
    )


@fuzzed(10)
@given(document=DOCUMENTS)
def test_documents_pass_the_command_line(assistant: CommandLine, document: str) -> None:
    assert assistant("kv", "set", "k", document).code == 0
    assert digits(assistant("kv", "get", "k").out) == digits(document)


def leaves(
    command: Any, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Every command with its words and its options, and every group as if it were one."""
    yield words, [name for p in command.params for name in (*p.opts, *p.secondary_opts)]
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*words, name))


COMMANDS = list(leaves(typer.main.get_command(create_app())))
OPTIONS = [name for _, options in COMMANDS for name in options if name.startswith("-")]
WORDS = st.sampled_from(
    [
        *("", "-", "--", "---", "-5", "-x", "--bogus", "--json=1", "0", "7", "1.5", "9" * 21),
        *("5m", "1h30m", "-1s", "off", "now", "tomorrow 9:00", "* * * * *", "Europe/Berlin"),
        *("k", "a/b", "conversation", "idle", "running,idle", "true", "null", '{"a": 1}', "["),
        *("@file", "$.a", "$(", "%s", "{0}", "[bold]", "\x1b[31m", "a\nb", "\u202e", "\udce9"),
        *("always", "json", "postgresql://u:p@127.0.0.1:1/x"),
    ]
) | st.text(st.characters(exclude_characters="\0"), max_size=8)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    words, options = draw(st.sampled_from(COMMANDS))
    options = [name for name in options if name.startswith("-")] or OPTIONS
    option = st.sampled_from(options) | st.sampled_from(OPTIONS)
    rest = draw(st.lists(WORDS | option, max_size=7))
    return [*words, *rest]


@fuzzed(150)
@given(words=command_lines())
def test_every_command_line_is_understood_or_a_usage_error(
    without_database: CommandLine, words: list[str]
) -> None:
    done = without_database(*words)
    assert done.code in {0, 2, 3, 65, 66, 69, 77, 78, 124}, done
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    if done.code == 2:
        assert done.out == ""
        assert done.err
