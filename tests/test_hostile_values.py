"""Every command on a database in which every text is hostile: a terminal gets visible text only.

What is shown instead, and what goes into a pipe, is in test_terminal_safety.py.
"""

from __future__ import annotations

import json
import re
from typing import Any
from unicodedata import category

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .hostile_text import DRAWING
from .terminals import Terminal
from .test_help_and_completion import PATHS

CORPUS = {
    "markup": "[red]x[/red] [/foo] [link=http://x]y[/link] :smile: {0} %s",
    "C0": "".join(chr(code) + "." for code in range(1, 32) if chr(code) not in "\t\n"),
    "DEL and C1": "".join(chr(code) + "." for code in range(0x7F, 0xA0)),
    "CSI": "\x1b[31mred\x1b[0m\x1b[2J\x1b[H\x1b[?1049h\x1b[6n\x1bc",
    "OSC 8 and 52": "\x1b]8;;http://x\x07at\x1b]8;;\x1b\\ \x1b]52;c;eA==\x07 \x9d52;c;eA==\x9c",
    "DCS, APC and PM": "\x1bP$q q\x1b\\ \x1b_Gi=1\x1b\\ \x1b^x\x1b\\",
    "bidi": "\u202etxet\u202c \u2066a\u2069 \u200f\u061c\u200e",
    "invisible": "\u200b\u2060\ufeff\xad\u180e\u3164\uffa0\u115f\U000e0041\U000e007f\u2028\u2029",
    "heaps": " ".join("a" + mark * 40 for mark in "\u0301\u0489\ufe0f\u200d"),
    "hidden": "e" + "".join(chr(0xE0100 + code) for code in range(40)),
}
HOSTILE = " ".join(CORPUS.values())

FILL = """
INSERT INTO assistant.turns (agent, trigger, conversation, token, model, outcome, error, ended_at)
VALUES (%(x)s, %(x)s, %(x)s, 1, %(x)s, 'failed', %(x)s, now()),
    ('heartbeat', 'timer', 'main', 1, %(x)s, 'failed', %(x)s, now()),
    ('conversation', 'message', 'main', 1, %(x)s, 'failed', %(x)s, now());
INSERT INTO assistant.turn_steps (turn_id, position, kind, content)
SELECT id, 1, 'request', jsonb_build_object(%(x)s, %(x)s) FROM assistant.turns;
INSERT INTO assistant.messages
    (id, conversation, role, content, source, external_id, state, turn_id, error)
SELECT gen_random_uuid(), place, who, %(x)s, %(x)s, %(x)s || place || who || turns.id,
    CASE who WHEN 'user' THEN 'failed' ELSE 'said' END, turns.id, %(x)s
FROM assistant.turns, unnest(ARRAY['main', %(x)s]) AS place, unnest(ARRAY['user', 'assistant']) AS
    who;
INSERT INTO assistant.schedules (conversation, content, due_at, kind, spec, zone, error, action)
VALUES (%(x)s, %(x)s, now() + interval '1 h', 'every', %(x)s, %(x)s, %(x)s, 'say');
INSERT INTO assistant.schedule_runs (schedule_id, due_at, outcome, error)
VALUES (1, now(), 'failed', %(x)s);
INSERT INTO assistant.leases (agent, token, host, pid, process, expires_at)
VALUES (%(x)s, nextval('assistant.tokens'), %(x)s, 1, %(x)s, now() + interval '50 s');
INSERT INTO kv (key, value) VALUES
    ('text', to_jsonb(%(x)s::text)), (%(x)s, to_jsonb(%(x)s::text)),
    ('object', jsonb_build_object(%(x)s, %(x)s)),
    ('memory/user', to_jsonb(%(x)s::text)), ('diary/' || %(x)s, to_jsonb(%(x)s::text)),
    ('heartbeat_last_tick_at', to_jsonb(%(x)s::text)),
    ('heartbeat_next_tick_at', to_jsonb(%(x)s::text)),
    ('heartbeat_paused', to_jsonb(%(x)s::text)),
    ('status_board', jsonb_build_object(
        %(x)s, jsonb_build_object('status', %(x)s, 'detail', %(x)s)));
"""

# What each command prints of what is stored; the commands that print none of it are below.
PRINTING = [
    ["kv", "get", "text"],
    ["kv", "get", "text", "-r"],
    ["kv", "get", "text", "--json"],
    ["kv", "get", "object", "$.*"],
    ["kv", "ls"],
    ["kv", "ls", "--values"],
    ["kv", "ls", "--long"],
    ["kv", "ls", "--json"],
    ["kv", "export"],
    ["kv", "watch", "text", "-n", "1"],
    ["kv", "watch", "--prefix", "", "-n", "9"],
    ["kv", "watch", "--prefix", "", "--json", "-n", "9"],
    ["status"],
    ["status", "--json"],
    ["status", "--history"],
    ["status", "--history", "--json"],
    ["history"],
    ["history", "--all"],
    ["history", "--all", "--json"],
    ["turns", "ls"],
    ["turns", "ls", "--json"],
    ["turns", "show", "1"],
    ["turns", "show", "1", "--json"],
    ["schedule", "ls"],
    ["schedule", "ls", "--json"],
    ["schedule", "show", "1"],
    ["schedule", "show", "1", "--json"],
    ["memory", "show"],
    ["memory", "show", "user"],
    ["memory", "search", "[red]"],
    ["memory", "show", "--json"],
    ["heartbeat", "last"],
    ["heartbeat", "last", "--json"],
    ["doctor"],
    ["doctor", "--json"],
]
# Their words are their own, but for what they repeat of their arguments in an error; `chat`,
# `run`, `send`, `reply`, `wait` and `heartbeat now` have tests of their own.
OTHERS = {
    *("run", "chat", "send", "reply", "wait", "report", "track", "turns cancel", "turns retry"),
    *("schedule add", "schedule edit", "schedule cancel", "schedule run", "heartbeat now"),
    *("heartbeat pause", "heartbeat resume", "memory edit", "kv set", "kv rm", "kv exists"),
    *("kv incr", "kv import", "db start", "db stop", "db status", "db url", "db migrate"),
    "db shell",
}
GROUPS = {"", "turns", "schedule", "heartbeat", "memory", "kv", "db"}


def unseen(text: str) -> list[str]:
    """What in a text a terminal would obey, hide, or heap upon other text."""
    found = []
    marks = 0
    for character in DRAWING.sub("", text):
        kind = category(character)
        marks = marks + 1 if kind in {"Mn", "Me", "Cf"} else 0
        joins = character in "\u200c\u200d"
        invisible = kind in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character not in "\t\n" and not joins
        if invisible or marks > 8 or character in "\u115f\u1160\u3164\uffa0":
            found.append(f"{character!a} after {marks} marks")
    return found[:20]


@pytest.fixture
def hostile(assistant: CommandLine, dsn: str) -> CommandLine:
    with psycopg.ClientCursor(psycopg.connect(dsn, autocommit=True)) as cursor:
        cursor.execute(FILL, {"x": HOSTILE})
        cursor.connection.close()
    assistant.environment["TERM"] = "xterm-256color"
    return assistant


def test_every_command_has_its_line_here() -> None:
    printing = {" ".join(command) for command in PRINTING}
    for path in PATHS:
        words = " ".join(path)
        known = words in OTHERS | GROUPS or any(p.startswith(words) for p in printing)
        assert known, f"does `{words}` print what is stored? then add it to PRINTING"


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_what_is_stored_is_shown_and_never_obeyed(hostile: CommandLine, command: list[str]) -> None:
    terminal = Terminal(hostile, *command, columns=3000, more=("stderr",))
    assert terminal.finish() == 0, terminal.text
    assert unseen(terminal.text) == []
    if command[0] != "doctor":
        assert "[red]x[/red] [/foo] [link=http://x]y[/link] :smile: {0} %s" in terminal.text
    piped = hostile(*command)
    assert (piped.code, unseen(piped.err)) == (0, [])
    if command[-1] == "--json":
        assert piped.out.endswith("\n")
        assert all(json.loads(line) is not None for line in piped.out.split("\n")[:-1])
    elif command[0] != "kv" and command[1:3] != ["show", "user"]:
        # Rows: no text is more than its cell. A step's content is JSON, whose escapes do that.
        assert (
            re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", piped.out.partition("\nstep\t")[0]) == []
        )


@pytest.mark.parametrize("path", [path for path in PATHS if path], ids=" ".join)
def test_what_a_command_repeats_of_its_arguments_is_shown(
    assistant: CommandLine, path: tuple[str, ...]
) -> None:
    for words in ([HOSTILE], [f"--{HOSTILE}"], [f"--json={HOSTILE}"], ["1", HOSTILE, HOSTILE]):
        done = assistant(*path, *words, stdin="")
        assert done.code != 1
        assert unseen(done.err) == []


@pytest.mark.parametrize(
    "command",
    [
        ["send", "x", "--timeout", HOSTILE],
        ["send", "x", "--id", HOSTILE],
        ["send", "x", "-c", HOSTILE],
        ["run", "--model", HOSTILE],
        ["run", "--agent", HOSTILE],
        ["run", "--heartbeat", HOSTILE],
        ["run", "--drain", HOSTILE],
        ["run", "--log-format", HOSTILE],
        ["status", "--history", "--since", HOSTILE],
        ["wait", "a", "--for", HOSTILE],
        ["wait", "a", "--for", "idle", "--timeout", HOSTILE],
        ["schedule", "add", "x", "--at", HOSTILE],
        ["schedule", "add", "x", "--every", HOSTILE],
        ["schedule", "add", "x", "--cron", f"* * * * {HOSTILE.replace(' ', '')}"],
        ["schedule", "add", "x", "--at", "14:30", "--tz", HOSTILE],
        ["schedule", "add", "x", "--at", "14:30", "--catch-up", HOSTILE],
        ["heartbeat", "pause", "--for", HOSTILE],
        ["kv", "set", "k", HOSTILE],
        ["kv", "set", "k", f'{{"{HOSTILE}": 1}}'],
        ["kv", "import", "--on-conflict", HOSTILE],
        ["memory", "search", HOSTILE],
        ["track", "a", "--", HOSTILE],
        ["--color", HOSTILE, "status"],
        ["--database-url", HOSTILE, "status"],
        ["--database-url", f"host=127.0.0.1 port=1 {HOSTILE}=x", "status"],
        ["--database-url", f"host='{HOSTILE}'", "status"],
    ],
    ids=lambda command: " ".join(word for word in command if word.isprintable()),
)
def test_what_is_refused_of_an_option_is_shown(assistant: CommandLine, command: list[str]) -> None:
    done = assistant(*command, stdin="")
    assert (done.code in {2, 3, 6, 65, 69, 77, 78, 127, 126}, done.out) == (True, ""), done
    assert done.err
    assert unseen(done.err) == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_model_says_of_its_failure_is_shown(
    assistant: CommandLine, sql: psycopg.Connection[Any], form: str
) -> None:
    # On one line: of several, the one that tells why is shown.
    quoted = re.sub("['\r\n]", "", HOSTILE)
    model = f"command:cat > /dev/null; printf '%s' '{quoted}' >&2; exit 3"
    assistant("send", "hello", "--id", "1")
    # The pauses before further attempts would take twenty seconds.
    sql.execute("UPDATE assistant.messages SET attempts = 2")
    run = ["run", "--until-idle", "--model", model, "--log-format", form]
    terminal = Terminal(assistant, *run, more=("stderr",))
    assert terminal.finish() == 6
    assert "[/foo]" in terminal.text
    assert unseen(terminal.text) == []
    for command in (["status"], ["turns", "ls"], ["turns", "show", "1"], ["history"]):
        terminal = Terminal(assistant, *command, columns=3000)
        assert terminal.finish() == 0
        assert unseen(terminal.text) == []
    done = assistant("send", "--wait", "hello", "--id", "1")
    assert done.code == 6
    assert "[/foo]" in done.err
    assert unseen(done.err) == []


def test_a_reply_that_comes_in_pieces_is_shown(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    terminal = Terminal(assistant, "send", "--wait", "hello", more=("stderr",))
    first = "SELECT id FROM assistant.messages"
    eventually(lambda: sql.execute(first).rowcount == 1, "the message")
    begin = (
        "INSERT INTO assistant.turns (agent, trigger, conversation, token, model) "
        "VALUES ('conversation', 'message', 'main', 1, 'm')"
    )
    sql.execute(begin)
    sql.execute("UPDATE assistant.messages SET turn_id = 1, state = 'working'")
    sql.execute("INSERT INTO assistant.partial_replies VALUES (1, '')")
    text = HOSTILE + " e" + "\u0301" * 40
    for end in range(1, len(text), len(text) // 40):
        shown = len(terminal.text)
        sql.execute("UPDATE assistant.partial_replies SET text = %s", (text[:end],))
        sql.execute("NOTIFY assistant_messages")
        eventually(lambda shown=shown: len(terminal.text) > shown, "more of the reply")  # type: ignore[misc]
    ((reply,),) = sql.execute(
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
        "VALUES (gen_random_uuid(), 'main', 'assistant', %s, 'x', 'said') RETURNING id",
        (text,),
    ).fetchall()
    sql.execute(
        "UPDATE assistant.messages SET state = 'answered', reply_id = %s WHERE role = 'user'",
        (reply,),
    )
    sql.execute("NOTIFY assistant_messages")
    assert terminal.finish() == 0
    assert "[/foo]" in terminal.text
    assert unseen(terminal.text) == []


def test_following_shows_each_new_message(
    hostile: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    terminal = Terminal(hostile, "history", "--all", "--follow", more=("stderr",))
    eventually(lambda: "[/foo]" in terminal.text, "the last messages")
    shown = len(terminal.text)
    sql.execute(
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
        "VALUES (gen_random_uuid(), %(x)s, 'user', %(x)s, %(x)s, 'said')",
        {"x": HOSTILE},
    )
    sql.execute("NOTIFY assistant_messages")
    eventually(lambda: len(terminal.text) > shown, "the new message")
    terminal.process.terminate()
    terminal.finish()
    assert unseen(terminal.text) == []


def test_a_chat_shows_and_recalls_no_hostile_text(
    hostile: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("UPDATE assistant.messages SET content = 'harmless' WHERE position = 1")
    assert "harmless" in hostile("history").out
    terminal = Terminal(hostile, "chat", more=("stdin", "stderr"))
    # It asks where the cursor is.
    eventually(lambda: "\x1b[6n" in terminal.text, "the prompt")
    terminal.type("\x1b[1;1R\x1b[A")
    eventually(lambda: terminal.plain.count("harmless") == 2, "the only line to recall")
    terminal.type("\x1b[B\x15\x04")
    eventually(lambda: terminal.process.poll() is not None, "the end")
    terminal.finish()
    assert "[/foo]" in terminal.text
    for text in ("\x1b[31m", "\x1b]", "\x1bP", "\x9b", "\u202e", "\u2028", "\u0301" * 9):
        assert text not in terminal.text


@pytest.mark.parametrize(
    "command",
    [["kv", "get", "long"], ["status"], ["status", "--history"], ["history"], ["turns", "ls"]],
    ids=" ".join,
)
def test_a_line_of_a_megabyte_is_shown_at_once(
    assistant: CommandLine, sql: psycopg.Connection[Any], command: list[str]
) -> None:
    line = "x" * 999_990
    board = {line[:100_000]: {"status": line[:1000], "detail": line[:800_000]}}
    for key, value in (("long", line), ("status_board", board)):
        sql.execute("INSERT INTO kv (key, value) VALUES (%s, %s)", (key, json.dumps(value)))
    sql.execute(
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
        "VALUES (gen_random_uuid(), 'main', 'user', %s, 'x', 'said')",
        (line,),
    )
    sql.execute(
        "INSERT INTO assistant.turns (agent, trigger, conversation, token, model, error) "
        "SELECT 'a', 't', 'c', 1, repeat('m', 300000 * (n %% 2)), %s FROM generate_series(1, 20) n",
        (line,),
    )
    terminal = Terminal(assistant, *command, columns=80, more=("stderr",))
    assert terminal.finish() == 0
    assert "xxx" in terminal.text
    assert len(terminal.text) < 25_000_000
