"""Language models over a real connection: replies, tools, and everything that goes wrong."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from assistant_cli.errors import AgentFailedError, ConfigurationError
from assistant_cli.models import get_model
from assistant_cli.store import inbox
from assistant_cli.store.database import Database

from .conftest import CommandLine
from .driven_clock import DrivenClock
from .hosting import ask, rows, until_equal
from .openai_server import (
    MODEL,
    OpenAIServer,
    babbles,
    calls,
    fails,
    hangs_up,
    marked,
    says,
    stalls,
    texts,
)
from .terminals import Terminal

ENTRY = "SELECT value -> 'conversation' FROM kv WHERE key = 'status_board'"
IDLE = {"status": "idle", "detail": None}
STEPS = "SELECT kind, content FROM assistant.turn_steps ORDER BY turn_id, position"
STATE = "SELECT state FROM assistant.messages WHERE role = 'user'"
OWN = "agents/conversation/tea"


async def test_a_reply_comes_with_what_was_said_before_and_is_counted(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    await database.kv.set("memory/user", "likes tea")
    server.will(says("Hel", "lo."), says("Again."))
    async with talking():
        assert await ask(database, "hello") == "Hello."
        assert await ask(database, "and now?") == "Again."
    first, second = server.requests
    assert first["stream"] is True
    (instructions,) = texts(first, "system")
    assert ("memory", "memory/user: likes tea") in marked(instructions)
    assert "conversation: running" in instructions
    assert texts(second, "user") == ["hello", "and now?"]
    assert texts(second, "assistant") == ["Hello."]
    used = "SELECT requests, input_tokens, output_tokens, outcome FROM assistant.turns ORDER BY id"
    assert await rows(database, used) == [(1, 11, 7, "done")] * 2
    kinds = [kind for kind, _ in await rows(database, STEPS)]
    assert kinds == ["request", "response"] * 2


async def test_what_no_text_can_hold_is_left_out_of_a_reply(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    server.will(says("tea\x00 at ", "\ud800 five"))
    async with talking():
        assert await ask(database, "when?") == "tea\ufffd at \ufffd five"


async def test_a_tool_is_called_and_its_result_told_as_data(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    server.will(calls("remember", '{"text": "tea at five"}'), says("Noted."))
    async with talking():
        assert await ask(database, "tea is at five") == "Noted."
    (key,) = await database.kv.list_keys("memory/notes/")
    assert await database.kv.get(key) == "tea at five"
    (result,) = texts(server.requests[1], "tool")
    assert marked(result) == [("tool remember", "kept when this turn ends")]
    steps = await rows(database, STEPS)
    assert [kind for kind, _ in steps] == [
        *("request", "response", "tool_call", "tool_result", "request", "response")
    ]
    assert steps[2][1] == {"tool": "remember", "arguments": {"text": "tea at five"}}


@pytest.mark.parametrize(
    ("key", "read", "write"),
    [
        ("memory/user", ("read_memory", {"name": "user"}), ("write_memory", {"name": "user"})),
        (OWN, ("get_key", {"key": OWN}), ("set_key", {"key": OWN})),
    ],
)
async def test_a_text_that_is_read_is_told_as_it_was_written(
    database: Database, server: OpenAIServer, talking: Any, key: str, read: Any, write: Any
) -> None:
    text = 'says "tea"\nat five'
    written = write[0], json.dumps({**write[1], "text": text})
    server.will(calls(*written), says("Noted."), calls(read[0], json.dumps(read[1])), says("Yes."))
    async with talking():
        await ask(database, "tea")
        await ask(database, "what was it?")
    assert await database.kv.get(key) == text
    told = texts(server.requests[-1], "tool")[-1]
    assert marked(told) == [(f"tool {read[0]}", text)]


async def test_each_entry_of_the_diary_is_one_of_its_own(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    entries = [json.dumps({"name": "diary", "text": text}) for text in ("tea", "cake")]
    server.will(*(calls("write_memory", entry) for entry in entries), says("Noted."))
    # Within one second.
    async with talking(clock=DrivenClock()):
        assert await ask(database, "tea and cake") == "Noted."
    kept = [entry.plain for entry in await database.kv.list_entries("diary/")]
    assert kept == ["tea", "cake"]


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("fly", "{}", "there is no tool 'fly'"),
        ("remember", '{"txt": 1}', "bad arguments: text: Field required"),
        ("remember", "{not json", "bad arguments: "),
        ("remember", '{"text": NaN}', "bad arguments: text: Input should be a valid string"),
        ("cancel_schedule", '{"schedule_id": 1e999}', "bad arguments: schedule_id: "),
        ("remember", '{"text": " "}', "the text is empty"),
        ("set_key", '{"key": "status_board", "text": "x"}', "agents/conversation/ only"),
        ("set_key", '{"key": "agents/heartbeat/x", "text": "x"}', "agents/conversation/ only"),
        ("set_key", '{"key": "memory/soul", "text": "x"}', "agents/conversation/ only"),
        ("get_key", '{"key": "secret"}', "agents/conversation/ only"),
        ("write_memory", '{"name": "../x", "text": "x"}', "bad arguments: name: "),
        ("speak", '{"text": "as the heartbeat"}', "there is no tool 'speak'"),
    ],
)
async def test_a_call_that_is_not_right_is_refused_recorded_and_changes_nothing(
    database: Database, server: OpenAIServer, talking: Any, tool: str, arguments: str, told: str
) -> None:
    before = await database.kv.list_keys()
    server.will(calls(tool, arguments), says("I could not."))
    async with talking():
        assert await ask(database, "do it") == "I could not."
        await until_equal(database, ENTRY, [IDLE])
    (result,) = texts(server.requests[1], "tool")
    assert "refused: " in result
    assert told in result
    (refused,) = [content for kind, content in await rows(database, STEPS) if kind == "tool_result"]
    assert refused["refused"] is True
    heartbeat_keys = {"status_board", "heartbeat_next_tick_at"}
    assert set(await database.kv.list_keys()) - heartbeat_keys == set(before) - heartbeat_keys


async def test_what_tools_change_is_kept_with_the_reply_or_not_at_all(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    again = [calls("remember", '{"text": "tea"}'), fails(400)]
    server.will(*again, *again, calls("remember", '{"text": "tea"}'), says("Noted."))
    async with talking():
        assert await ask(database, "tea") == "Noted."
    assert len(await database.kv.list_keys("memory/notes/")) == 1
    outcomes = await rows(database, "SELECT outcome FROM assistant.turns ORDER BY id")
    assert outcomes == ["failed", "failed", "done"]


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_server_that_refuses_is_not_asked_again_for_a_while(
    database: Database, server: OpenAIServer, talking: Any, status: int
) -> None:
    clock = DrivenClock()
    server.will(fails(status))
    async with talking(clock=clock):
        await inbox.put_message(database, "hello", conversation="work")
        failed = "SELECT count(*) FROM assistant.turns WHERE outcome = 'failed'"
        reason = f"turn 1 failed: the model's server answered {status}: because of {status}"
        await until_equal(database, ENTRY, [{"status": "failed", "detail": reason}])
        await inbox.put_message(database, "hello?", conversation="other")
        await until_equal(database, failed, [2])
        assert "/remind" in await ask(database, "/help")
        assert len(server.requests) == 1
        waiting = "SELECT attempts FROM assistant.messages WHERE state = 'waiting'"
        assert await rows(database, waiting) == [0, 0]
        await rows(database, "UPDATE assistant.messages SET retry_at = now()")
        server.will(says("Here."), says("There."))
        clock.move(minutes=11)
        await until_equal(database, STATE, ["answered"] * 3)


@pytest.mark.parametrize(
    "trouble", [fails(429, retry_after="1"), fails(500), fails(503), fails(408)]
)
async def test_trouble_that_passes_is_waited_for_within_the_turn(
    database: Database, server: OpenAIServer, talking: Any, trouble: Any
) -> None:
    server.will(trouble, says("Sorry to keep you waiting."))
    async with talking():
        assert await ask(database, "hello") == "Sorry to keep you waiting."
    assert await rows(database, "SELECT outcome FROM assistant.turns") == ["done"]


@pytest.mark.parametrize("trouble", [hangs_up, babbles, says()])
async def test_half_a_reply_is_a_failed_turn_and_the_message_is_answered_once(
    database: Database, server: OpenAIServer, talking: Any, trouble: Any
) -> None:
    server.will(trouble, says("Whole."))
    async with talking():
        assert await ask(database, "hello") == "Whole."
        await until_equal(database, ENTRY, [IDLE])
    outcomes = await rows(database, "SELECT outcome FROM assistant.turns ORDER BY id")
    assert outcomes == ["failed", "done"]
    said = "SELECT content FROM assistant.messages WHERE role = 'assistant'"
    assert await rows(database, said) == ["Whole."]


async def test_a_stall_past_the_deadline_is_a_turn_that_timed_out(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    server.will(stalls, stalls, stalls)
    async with talking(turn_timeout=timedelta(seconds=0.5)):
        with pytest.raises(AgentFailedError, match="in 3 attempts: no result within"):
            await ask(database, "hello")
    outcomes = await rows(database, "SELECT DISTINCT outcome FROM assistant.turns")
    assert outcomes == ["timed_out"]


async def test_a_heartbeat_speaks_once_and_may_stay_silent(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    clock = DrivenClock()
    await inbox.put_message(database, "hello", conversation="main")
    server.will(calls("speak", '{"text": "Tea!"}'), says("[no action needed]"))
    async with talking(clock=clock, agents=("heartbeat",), heartbeat=timedelta(minutes=30)):
        await until_equal(database, "SELECT outcome FROM assistant.turns", ["done"])
    said = "SELECT content, source FROM assistant.messages WHERE role = 'assistant'"
    assert await rows(database, said) == [("Tea!", "heartbeat")]


async def test_a_day_on_which_nothing_happens_costs_nothing(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    clock = DrivenClock()
    outcomes = "SELECT outcome, error, requests FROM assistant.turns"
    skipped = ("skipped", "nothing has happened since the last heartbeat", 0)
    async with talking(clock=clock, heartbeat=timedelta(minutes=30)):
        for tick in range(1, 49):
            await until_equal(database, outcomes, [skipped] * tick)
            clock.move(minutes=30)
    assert server.requests == []


async def test_the_oldest_messages_are_left_out_whole(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    async with talking():
        for number in range(4):
            server.will(says(str(number) * 9_000))
            await ask(database, f"ask {number}")
        server.will(says("done"))
        await ask(database, "last")
    said = texts(server.requests[-1], "assistant")
    assert said == [str(number) * 9_000 for number in (1, 2, 3)]


async def test_a_long_message_hides_nothing_that_was_said_before(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    log = "began" + "x" * 100_000 + "ended"
    server.will(says("one"), says("two"), says("three"))
    async with talking():
        for text in ("the question", log, "and why?"):
            await ask(database, text)
    assert texts(server.requests[-1], "assistant") == ["one", "two"]
    question, cut, _ = texts(server.requests[-1], "user")
    assert question == "the question"
    assert cut.startswith("beganxxx")
    assert cut.endswith("xxxended")
    assert "[84,010 characters are left out here]" in cut
    assert len(cut) < 16_100


async def test_of_memory_the_oldest_notes_are_left_out_and_no_text(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    for name in ("instructions", "soul", "user"):
        await database.kv.set(f"memory/{name}", f"my {name}" + "." * 350)
    for number in range(4):
        await database.kv.set(f"memory/notes/{number}", str(number) * 5_000)
    async with talking():
        await ask(database, "hello")
    told = dict(marked(texts(server.requests[0], "system")[0]))["memory"]
    for name in ("instructions", "soul", "user"):
        assert f"memory/{name}: my {name}" in told
    assert [str(number) * 5_000 in told for number in range(4)] == [False, False, True, True]


async def test_a_note_that_is_too_long_hides_no_other(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    for name, text in (("1", "tea at five"), ("2", "x" * 20_000), ("3", "milk is out")):
        await database.kv.set(f"memory/notes/{name}", text)
    async with talking():
        await ask(database, "hello")
    told = dict(marked(texts(server.requests[0], "system")[0]))["memory"]
    assert told == "memory/notes/1: tea at five\nmemory/notes/3: milk is out"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("openai:gpt-4o", "export OPENAI_API_KEY="),
        ("anthropic:claude-sonnet-4-5", "pip install 'assistant-cli[anthropic]'"),
        ("google:gemini-2.5-pro", "pip install 'assistant-cli[google]'"),
        ("nobody:gpt", "Unknown model: nobody:gpt"),
        ("gpt-5", "there is no model 'gpt-5'"),
    ],
)
def test_a_model_that_cannot_be_used_is_told_before_anything_starts(
    assistant: CommandLine, monkeypatch: pytest.MonkeyPatch, model: str, reason: str
) -> None:
    done = assistant("run", "--model", model)
    assert (done.code, done.out, len(done.err.splitlines())) == (78, "", 1)
    assert reason in done.err
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError):
        get_model(model)


def test_the_command_line_talks_to_any_server_by_its_address(
    assistant: CommandLine, server: OpenAIServer
) -> None:
    server.will(says("Hello from afar."))
    assistant.environment |= {"ASSISTANT_BASE_URL": server.base_url, "ASSISTANT_MODEL": MODEL}
    assistant.start_run("--heartbeat", "off")
    assert assistant("send", "--wait", "hello").out == "Hello from afar.\n"
    assert json.loads(assistant("doctor", "--json").out)["checks"][1]["result"] == MODEL


async def test_those_who_wait_see_the_reply_come(
    database: Database, server: OpenAIServer, talking: Any
) -> None:
    seen: list[str] = []
    server.will(stalls, says("Well done."))
    async with talking(turn_timeout=timedelta(seconds=3)):
        message = await inbox.put_message(database, "hello", conversation="main")
        assert await inbox.wait_for_reply(database, message, seen.append) == "Well done."
    assert seen[0] == "Well"
    assert await rows(database, "SELECT count(*) FROM assistant.partial_replies") == [0]


def test_on_a_terminal_the_reply_is_printed_as_it_comes(
    assistant: CommandLine, server: OpenAIServer
) -> None:
    server.will(stalls, says("Well", " done.\n\x1b[31mred"))
    environment = {"ASSISTANT_BASE_URL": server.base_url, "ASSISTANT_TURN_TIMEOUT": "2s"}
    assistant.environment |= {**environment, "ASSISTANT_MODEL": MODEL}
    assistant.start_run("--heartbeat", "off")
    terminal = Terminal(assistant, "send", "--wait", "hello")
    terminal.wait_for("Well")
    assert terminal.finish() == 0
    assert terminal.text.endswith(" done.\n\\x1b[31mred\n")
