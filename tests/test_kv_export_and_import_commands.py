"""`assistant kv export` and `import`: all comes back as it was, a bad line is named, and bulk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, Finished
from .stored_keys import put, stored

# As its parent measures a command: what a test itself holds in memory would count as well.
MEASURE = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
print(child.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def test_what_was_exported_comes_back_as_it_was(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    values = {
        "z": "1.10",
        "B": "null",
        "a/\u00fc\U0001f600": '"\u00fc \\\\ \\" \\n \\u0001 \\u001b \u2028 \\r\\t"',
        'a/"\\': '{"a": [12345678901234567890.123, {"": ""}]}',
        "a/large": f'"{"x" * 999_998}"',
    }
    for key, text in values.items():
        put(sql, key, text)
    put(sql, "over", "1")
    sql.execute("UPDATE kv SET expires_at = now() WHERE key = 'over'")
    done = assistant("kv", "export")
    assert (done.code, done.err) == (0, "")
    assert [json.loads(line)["key"] for line in done.out.split("\n")[:-1]] == sorted(values)
    assert '\n{"key": "z", "value": 1.10}\n' in done.out

    sql.execute("TRUNCATE kv")
    assert assistant("kv", "import", stdin=done.out) == Finished(0, "", "assistant: wrote 5 keys\n")
    assert stored(sql) == values
    assert assistant("kv", "export") == done


def test_export_of_a_prefix_takes_it_literally(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    for key in ("a_1", "aX1", "b"):
        put(sql, key, "1")
    assert assistant("kv", "export", "a_").out == '{"key": "a_1", "value": 1}\n'
    assert assistant("kv", "export", "nothing") == Finished(0, "", "")


LINES = '{"key": "a", "value": "new"}\n{"key": "b", "value": 1.10}\n'


@pytest.mark.parametrize(
    ("options", "code", "said", "kept"),
    [
        ([], 0, "wrote 2 keys", {"a": '"new"', "b": "1.10"}),
        (["--on-conflict", "replace"], 0, "wrote 2 keys", {"a": '"new"', "b": "1.10"}),
        (["--on-conflict", "skip"], 0, "wrote 1 key", {"a": '"old"', "b": "1.10"}),
        (["--on-conflict", "fail"], 5, "the key 'a' exists already", {"a": '"old"'}),
        (["--dry-run"], 0, "would write 2 keys", {"a": '"old"'}),
        (["--dry-run", "--on-conflict", "skip"], 0, "would write 1 key", {"a": '"old"'}),
        (["--dry-run", "--on-conflict", "fail"], 5, "the key 'a' exists already", {"a": '"old"'}),
        (["--on-conflict", "merge"], 2, "--on-conflict", {"a": '"old"'}),
    ],
)
def test_what_an_import_does_with_keys_that_exist(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    options: list[str],
    code: int,
    said: str,
    kept: dict[str, str],
) -> None:
    put(sql, "a", '"old"')
    done = assistant("kv", "import", "-", *options, stdin=LINES)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert said in done.err
    assert stored(sql) == kept


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[]",
        '{"key": "k"}',
        '{"key": "k", "value": 1, "more": 2}',
        '{"key": 1, "value": 1}',
        '{"key": "", "value": 1}',
        '{"key": "\\n", "value": 1}',
        '{"key": "k", "value": NaN}',
        '{"key": "k", "value": {"a": 1, "a": 2}}',
        '{"key": "k", "value": "\\u0000"}',
        '{"key": "k", "value": "\\udc00"}',
        '{"key": "k", "value": 1} {"key": "l", "value": 1}',
        b'{"key": "k", "value": "\xff"}',
        pytest.param(f'{{"key": "k", "value": "{"x" * 5_000_000}"}}', id="too large"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_bad_line_is_named_and_nothing_is_imported(
    assistant: CommandLine, sql: psycopg.Connection[Any], line: str | bytes, options: list[str]
) -> None:
    put(sql, "a", '"old"')
    bad = line if isinstance(line, bytes) else line.encode()
    data = LINES.encode() + b"\n" + bad + b'\n{"key": "z", "value": 1}\n'
    done = assistant("kv", "import", *options, stdin=data)
    assert (done.code, done.out, done.err.count("\n")) == (65, "", 1)
    assert "line 4" in done.err
    assert "nothing was imported" in done.err
    assert stored(sql) == {"a": '"old"'}


def test_import_reads_a_file(
    assistant: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"\r\n{LINES.rstrip()}\r\n\n", "utf-8")
    assert assistant("kv", "import", str(file)).code == 0
    assert stored(sql) == {"a": '"new"', "b": "1.10"}
    for unreadable in (tmp_path / "missing", tmp_path):
        done = assistant("kv", "import", str(unreadable))
        assert (done.code, done.out, done.err.count("\n")) == (66, "", 1)
        assert str(unreadable) in done.err


def test_memory_does_not_grow_with_the_number_of_keys(
    assistant: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path
) -> None:
    def peak(*arguments: str) -> int:
        command = [sys.executable, "-c", MEASURE, *assistant.command("kv", *arguments)]
        done = subprocess.run(command, capture_output=True, env=assistant.environment, check=True)
        code, size = done.stdout.split()
        assert int(code) == 0
        return int(size)

    few, many = tmp_path / "few", tmp_path / "many"
    for file, count in ((few, 1_000), (many, 100_000)):
        line = '{{"key": "k/{}", "value": "{}"}}\n'
        file.write_text("".join(line.format(n, "x" * 80) for n in range(count)), "utf-8")
    base = peak("import", str(few))
    assert peak("import", str(many)) < base + 30_000_000
    assert sql.execute("SELECT FROM kv").rowcount == 100_000
    base = peak("export", "k/12345")
    assert peak("export") < base + 30_000_000
