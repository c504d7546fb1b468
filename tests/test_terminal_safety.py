"""What comes from the database is shown on a terminal, never obeyed; in a pipe it is as stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .hostile_text import BIDI, DRAWING, HOSTILE, IN_JSON, ON_A_LINE, STEERING
from .terminals import Terminal


def put(sql: psycopg.Connection[Any], key: str, value: object) -> None:
    sql.execute("INSERT INTO kv (key, value) VALUES (%s, %s)", (key, json.dumps(value)))


def hold(sql: psycopg.Connection[Any], agent: str) -> None:
    """A live lease of a process on a host with a hostile name."""
    sql.execute(
        "INSERT INTO assistant.leases (agent, token, host, pid, process, expires_at) "
        "VALUES (%s, nextval('assistant.tokens'), %s, 1, 'p', now() + interval '15 s')",
        (agent, HOSTILE),
    )


@pytest.fixture
def hostile(assistant: CommandLine, sql: psycopg.Connection[Any]) -> CommandLine:
    """The command line on a database that another program filled with all there is."""
    put(sql, "text", HOSTILE)
    put(sql, "object", {HOSTILE: HOSTILE, "inner": HOSTILE})
    put(sql, HOSTILE, HOSTILE)
    put(sql, BIDI, HOSTILE)
    put(sql, "heartbeat_last_tick_at", HOSTILE)
    put(sql, "status_board", {HOSTILE: {"status": HOSTILE, "detail": HOSTILE}})
    hold(sql, HOSTILE)
    assistant.environment["TERM"] = "xterm-256color"
    return assistant


def assert_shown(text: str, pieces: list[str]) -> None:
    assert STEERING.findall(text) == []
    assert [piece for piece in pieces if piece not in text] == []


# On a terminal


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["get", "text"], IN_JSON),
        (["get", "text", "-r"], ON_A_LINE),
        (["get", "object"], IN_JSON),
        (["get", "object", "inner"], IN_JSON),
        (["get", "object", "inner", "-r"], ON_A_LINE),
        (["get", "object", "-r"], IN_JSON),
        (["get", "text", "--json"], IN_JSON),
        (["get", BIDI, "--json"], [*IN_JSON, r'"\u202eyek [red]x[/red] ']),
        (["get", "missing", "--default", json.dumps(BIDI, ensure_ascii=False)], [r"\u202eyek"]),
        (["get", "missing", "-r", "--default", json.dumps(HOSTILE)], ON_A_LINE),
        (["ls"], [*ON_A_LINE, r"\u202eyek [red]x[/red]"]),
        (["ls", "--values"], [*ON_A_LINE, *IN_JSON]),
        (["ls", "--long"], [*ON_A_LINE, *IN_JSON]),
        (["ls", "--json"], IN_JSON),
        (["watch", "text", "-n", "1"], IN_JSON),
        (["watch", "--prefix", "", "-n", "6"], [*IN_JSON, r'"\u202eyek [red]x[/red] ']),
        (["watch", "text", "--json", "-n", "1"], IN_JSON),
        (["watch", "--prefix", "", "--json", "-n", "6"], IN_JSON),
        (["export"], [*IN_JSON, r'"\u202eyek [red]x[/red] ']),
    ],
)
def test_keys_and_values_steer_no_terminal(
    hostile: CommandLine, arguments: list[str], pieces: list[str]
) -> None:
    terminal = Terminal(hostile, "kv", *arguments)
    assert terminal.finish() == 0, terminal.errors
    assert_shown(terminal.text, pieces)
    assert_shown(terminal.errors, [])


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--history"],
        ["--color", "always"],
        ["--color", "never"],
        ["--history", "--color=never"],
    ],
)
def test_the_board_steers_no_terminal(hostile: CommandLine, options: list[str]) -> None:
    terminal = Terminal(hostile, "status", *options, columns=3000)
    assert terminal.finish() == 0, terminal.errors
    assert_shown(DRAWING.sub("", terminal.text), ON_A_LINE)
    (row,) = (line for line in terminal.text.splitlines() if ":smile:" in line)
    # As agent, status and detail, and as the host of its process but in the history.
    assert row.count(r"\x9b31mred") == (3 if "--history" in options else 4)


def test_the_board_steers_no_terminal_that_is_too_narrow_for_it(hostile: CommandLine) -> None:
    terminal = Terminal(hostile, "status", columns=60)
    assert terminal.finish() == 0, terminal.errors
    assert_shown(DRAWING.sub("", terminal.text), [])


@pytest.mark.parametrize("options", [["--json"], ["--history", "--json"], ["--json", HOSTILE]])
def test_status_as_json_steers_no_terminal(hostile: CommandLine, options: list[str]) -> None:
    terminal = Terminal(hostile, "status", *options)
    assert terminal.finish() == 0, terminal.errors
    assert_shown(terminal.text, IN_JSON)
    document = json.loads(terminal.text)
    (entry,) = document.get("agents") or document["events"]
    assert (entry["agent"], entry["status"], entry["detail"]) == (HOSTILE, HOSTILE, HOSTILE)


@pytest.mark.parametrize(("options", "pieces"), [([], ON_A_LINE), (["--json"], IN_JSON)])
def test_watching_the_board_steers_no_terminal(
    hostile: CommandLine, options: list[str], pieces: list[str]
) -> None:
    terminal = Terminal(hostile, "status", "--watch", *options, columns=3000)
    eventually(lambda: terminal.text.endswith("\n") or "messages:" in terminal.text, "the board")
    hostile("report", "backup", "running", "the disk")
    eventually(lambda: "the disk" in terminal.text, "the change")
    terminal.process.terminate()
    terminal.finish()
    assert_shown(DRAWING.sub("", terminal.text), pieces)
    assert_shown(terminal.errors, [])


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_doctor_steers_no_terminal(hostile: CommandLine, options: list[str]) -> None:
    terminal = Terminal(hostile, "doctor", *options)
    assert terminal.finish() == 0, terminal.errors
    assert_shown(terminal.text, IN_JSON if options else ON_A_LINE)


def reply(sql: psycopg.Connection[Any], changes: str, *parameters: object) -> None:
    """Answer the message that waits, as the conversation agent would."""
    waiting = "SELECT FROM assistant.messages WHERE role = 'user'"
    eventually(lambda: sql.execute(waiting).rowcount == 1, "the message")
    update = f"UPDATE assistant.messages SET {changes} WHERE role = 'user'"
    sql.execute(update.encode(), parameters)
    sql.execute("NOTIFY assistant_messages")


REPLY = """
    INSERT INTO assistant.messages (id, conversation, role, content, source, state)
    VALUES (gen_random_uuid(), %s, 'assistant', %s, 'x', 'said') RETURNING id"""


def test_a_reply_steers_no_terminal_and_keeps_its_lines(
    hostile: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    terminal = Terminal(hostile, "send", "--wait", "hello", "--conversation", "[red]x[/red]")
    ((answer,),) = sql.execute(REPLY, (HOSTILE, f"one\n\ttwo\n{HOSTILE}")).fetchall()
    reply(sql, "state = 'answered', reply_id = %s", answer)
    asked = "SELECT id::text FROM assistant.messages WHERE role = 'user'"
    ((message,),) = sql.execute(asked).fetchall()
    for shown in (terminal, Terminal(hostile, "reply", message)):
        assert shown.finish() == 0, shown.errors
        assert_shown(shown.text, ["one\n\ttwo\n", *ON_A_LINE])
        assert_shown(shown.errors, [])


def test_the_error_of_a_message_steers_no_terminal(
    hostile: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    terminal = Terminal(hostile, "send", "--wait", "hello")
    reply(sql, "state = 'failed', error = %s", f"{HOSTILE}\nand details")
    assert terminal.finish() == 6
    assert terminal.text == ""
    assert_shown(terminal.errors, ON_A_LINE)
    assert "details" not in terminal.errors


# Errors and logs, which go to a terminal more often than not


@pytest.mark.parametrize(
    ("arguments", "code", "pieces"),
    [
        (["kv", "get", f"no {BIDI}"], 3, [r"no \u202eyek [red]x[/red]"]),
        (["kv", "get", "text", "\u202e"], 3, [r"\u202e"]),
        (["kv", "get", "text", "$.\x1b[31m"], 65, []),
        (["kv", "get", HOSTILE], 65, []),
        (["kv", "rm", f"no {BIDI}"], 3, [r"\u202eyek [red]x[/red]"]),
        (["kv", "set", BIDI, "1", "--create"], 5, [r"\u202eyek [red]x[/red]"]),
        (["kv", "set", BIDI, "1", "--if-revision", "1"], 5, [r"\u202eyek [red]x[/red]"]),
        (["kv", "set", "k", f"@/missing/{HOSTILE}"], 66, ON_A_LINE),
        (["kv", "incr", BIDI], 65, [r"\u202eyek [red]x[/red]"]),
        (["kv", "incr", "n", HOSTILE], 65, [r"\x1b[31mred", "[red]x[/red]"]),
        (["kv", "watch", "text", "--", f"/missing/{HOSTILE}"], 127, [r"\x1b[31mred"]),
        (["kv", "import", f"/missing/{HOSTILE}"], 66, ON_A_LINE),
        (["kv", "ls", f"--{HOSTILE}"], 2, [r"\x1b[31mred"]),
        (["kv", f"{HOSTILE}\n"], 2, [r"\x1b[31mred", "[red]x[/red]"]),
        (["status", f"no {HOSTILE}"], 3, ON_A_LINE),
        (["wait", f"no {HOSTILE}", "--for", "idle", "--timeout", "1s"], 124, ON_A_LINE),
        (["wait", "backup", "--for", "idle", "--fail-on", "failed"], 6, [r"one\n", *ON_A_LINE]),
        (["report", HOSTILE, "idle"], 65, []),
        (["report", "conversation", HOSTILE], 2, [r"\x1b[31mred"]),
        (["report", "conversation", "idle"], 5, []),
        (["track", "conversation", "--", "true"], 5, ON_A_LINE),
        (["run"], 5, ON_A_LINE),
    ],
)
def test_an_error_is_one_line_that_steers_no_terminal(
    hostile: CommandLine,
    sql: psycopg.Connection[Any],
    arguments: list[str],
    code: int,
    pieces: list[str],
) -> None:
    sql.execute("DELETE FROM kv WHERE key = 'status_board'")
    put(sql, "status_board", {"backup": {"status": "failed", "detail": f"one\n{HOSTILE}"}})
    hold(sql, "conversation")
    done = hostile(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert_shown(done.err, pieces)


@pytest.mark.parametrize(
    ("options", "line", "code"),
    [(["--on-conflict", "fail"], json.dumps({"key": BIDI, "value": 1}), 5), ([], HOSTILE, 65)],
)
def test_an_import_that_is_refused_steers_no_terminal(
    hostile: CommandLine, options: list[str], line: str, code: int
) -> None:
    done = hostile("kv", "import", *options, stdin=line)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert_shown(done.err, [r"\u202eyek [red]x[/red]"] if code == 5 else [])


def refuse(sql: psycopg.Connection[Any], event: str) -> None:
    """Let a trigger of another program refuse a change of kv in hostile words."""
    sql.execute("CREATE TABLE words AS SELECT %s::text AS said", (f"{HOSTILE}\nmore",))
    sql.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN RAISE EXCEPTION '%', (SELECT said FROM public.words); END $$""")
    trigger = f"CREATE TRIGGER refuse BEFORE {event} ON kv EXECUTE FUNCTION refuse()"
    sql.execute(trigger.encode())


def test_what_the_database_itself_says_steers_no_terminal(
    hostile: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    refuse(sql, "INSERT")
    done = hostile("kv", "set", "k", "1")
    assert (done.out, done.err.count("\n")) == ("", 1)
    assert done.code != 0
    assert_shown(done.err, ON_A_LINE)


def test_the_log_of_a_run_steers_no_terminal(
    hostile: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    refuse(sql, "DELETE")
    model = f"command:true # {HOSTILE}"
    run = hostile.start("run", "--model", model, "--heartbeat", "off")
    assert run.stderr is not None
    lines = [run.stderr.readline() for _ in range(2)]
    assert_shown("".join(lines), [])
    for said in ("the model is command:true # ", "cannot keep things in order"):
        (line,) = (line for line in lines if said in line)
        assert_shown(line, ON_A_LINE)


def test_the_log_of_a_run_that_stands_by_steers_no_terminal(
    hostile: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    hold(sql, "conversation")
    run = hostile.start("run", "--standby")
    assert run.stderr is not None
    line = run.stderr.readline()
    assert "standing by: conversation is already held by host " in line
    assert_shown(line, ON_A_LINE)


# In a pipe


def test_in_a_pipe_values_are_as_stored(hostile: CommandLine, sql: psycopg.Connection[Any]) -> None:
    stored = dict(sql.execute("SELECT key, value::text FROM kv").fetchall())
    assert "\x9b" in stored["text"]
    assert "\u202e" in stored["text"]
    for key in ("text", "object", BIDI):
        assert hostile("kv", "get", key).out == f"{stored[key]}\n"
    assert hostile("kv", "get", "object", "inner").out == f"{stored['text']}\n"
    assert hostile("kv", "get", "text", "-r").out == f"{HOSTILE}\n"
    assert hostile("kv", "watch", "text", "-n", "1").out == f"{stored['text']}\n"
    assert hostile("kv", "ls", "text", "--values").out == f"text\t{stored['text']}\n"
    assert hostile("kv", "ls", "text", "--long").out.endswith(f"\t-\t{stored['text']}\n")
    exported = hostile("kv", "export").out
    assert f'{{"key": "object", "value": {stored["object"]}}}\n' in exported


def test_in_a_pipe_documents_hold_what_is_stored(hostile: CommandLine) -> None:
    def lines(*arguments: str) -> list[Any]:
        return [json.loads(line) for line in hostile(*arguments).out.split("\n")[:-1]]

    (entry,) = lines("kv", "get", BIDI, "--json")
    assert (entry["key"], entry["value"]) == (BIDI, HOSTILE)
    (entries,) = lines("kv", "ls", "--json")
    watched = lines("kv", "watch", "--prefix", "", "--json", "-n", "6")
    for listing in (
        entries,
        watched,
        lines("kv", "export"),
        lines("kv", "watch", "--prefix", "", "-n", "6"),
    ):
        values = {entry["key"]: entry["value"] for entry in listing}
        assert values[HOSTILE] == values[BIDI] == values["text"] == HOSTILE
        assert values["object"] == {HOSTILE: HOSTILE, "inner": HOSTILE}
    (document,) = lines("status", "--json")
    (agent,) = document["agents"]
    assert (agent["agent"], agent["detail"], agent["holder"]["host"]) == (HOSTILE,) * 3


def test_in_a_pipe_every_key_and_agent_is_one_line(hostile: CommandLine) -> None:
    keys = hostile("kv", "ls").out.split("\n")
    assert keys[-1] == ""
    assert BIDI in keys
    assert {"text", "object", "status_board", "heartbeat_last_tick_at"} < set(keys)
    (escaped,) = (key for key in keys if r"over\rwritten" in key)
    assert_shown(escaped, ON_A_LINE)
    for options in ([], ["--history"]):
        (row, end) = hostile("status", *options).out.split("\n")
        assert end == ""
        assert_shown(row, ON_A_LINE)


def test_in_a_pipe_a_reply_is_as_the_model_gave_it(
    hostile: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path
) -> None:
    printed = tmp_path / "reply"
    with printed.open("wb") as stdout:
        process = hostile.start("send", "--wait", "hello", stdout=stdout)
    ((answer,),) = sql.execute(REPLY, ("main", f"one\n\ttwo\n{HOSTILE}")).fetchall()
    reply(sql, "state = 'answered', reply_id = %s", answer)
    assert process.wait(timeout=20) == 0
    assert printed.read_bytes().decode() == f"one\n\ttwo\n{HOSTILE}\n"
