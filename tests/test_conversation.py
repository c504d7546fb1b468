"""The conversation agent: what waits together is one turn, and every message is answered once."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from assistant_cli.agents.conversation import ConversationAgent, conversation
from assistant_cli.agents.host import Host
from assistant_cli.errors import AgentFailedError
from assistant_cli.models import get_model
from assistant_cli.store import inbox, leases
from assistant_cli.store.board import create_status_board
from assistant_cli.store.database import Database

from .conftest import PATIENCE_SECONDS, eventually
from .hosting import Hold, ask, hosting, living, rows, until, until_equal, worker_of

SPOKEN = "SELECT content FROM assistant.messages WHERE role = 'assistant' ORDER BY position"
ENTRY = "SELECT value -> 'conversation' FROM kv WHERE key = 'status_board'"
IDLE = {"status": "idle", "detail": None}


async def put(database: Database, text: str, conversation: str = "main") -> UUID:
    return await inbox.put_message(database, text, conversation=conversation)


async def replies(database: Database, *messages: UUID) -> list[str]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [await inbox.wait_for_reply(database, message) for message in messages]


async def running(database: Database, detail: str) -> None:
    await until_equal(database, ENTRY, [{"status": "running", "detail": detail}])


async def test_what_comes_in_during_a_turn_is_the_next_turn_in_order(
    database: Database, hold: Hold
) -> None:
    hold.close()
    async with hosting(database, hold.model):
        first = await put(database, "one")
        await running(database, "answering 1 message in main")
        later = [await put(database, text) for text in ("two", "three\nand more", "four")]
        hold.open()
        await replies(database, first, *later)
    assert hold.asked == ["one", "two\nthree\nand more\nfour"]
    assert await rows(database, SPOKEN) == [
        "re: one",
        "re: two\nre: three\nre: and more\nre: four",
    ]
    linked = "SELECT DISTINCT turn_id, reply_id FROM assistant.messages WHERE role = 'user'"
    assert len(await rows(database, linked)) == 2


async def test_who_takes_a_message_back_takes_back_no_other(database: Database, hold: Hold) -> None:
    hold.close()
    other, mine = await put(database, "other"), await put(database, "mine")
    async with hosting(database, hold.model):
        await running(database, "answering 2 messages in main")
        await inbox.withdraw(database, mine)
        states = "SELECT content FROM assistant.messages WHERE state = 'failed'"
        await until_equal(database, states, ["mine"])
        hold.open()
        assert await replies(database, other) == ["re: other"]
    with pytest.raises(AgentFailedError, match="cancelled on request"):
        await inbox.read_reply(database, mine)
    attempts = "SELECT attempts FROM assistant.messages WHERE content = 'other'"
    assert await rows(database, attempts) == [1]


async def test_a_command_that_is_taken_back_takes_back_no_other(
    database: Database, hold: Hold
) -> None:
    hold.close()
    other, mine = await put(database, "other"), await put(database, "/status")
    async with hosting(database, hold.model):
        await running(database, "answering 2 messages in main")
        # The command is obeyed before the model is asked.
        await until(lambda: asyncio.sleep(0, hold.asked), "the question")
        await inbox.withdraw(database, mine)
        answered = "SELECT content FROM assistant.messages WHERE state = 'answered'"
        await until_equal(database, answered, ["/status"])
        hold.open()
        assert await replies(database, other) == ["re: other"]


async def test_conversations_are_answered_at_the_same_time(database: Database, hold: Hold) -> None:
    hold.close()
    async with hosting(database, hold.model):
        first = await put(database, "one", "a")
        await running(database, "answering 1 message in a")
        other = await put(database, "two", "b")
        await running(database, "answering 2 messages in 2 conversations")
        again = [await put(database, "three", "a"), await put(database, "four", "a")]
        hold.open()
        assert await replies(database, other) == ["re: two"]
        await replies(database, first, *again)
    assert sorted(hold.asked[:2]) == ["one", "two"]
    assert hold.asked[2:] == ["three\nfour"]
    where = "SELECT conversation FROM assistant.messages WHERE role = 'assistant' ORDER BY position"
    assert sorted(await rows(database, where)) == ["a", "a", "b"]


async def test_no_more_conversations_are_answered_at_a_time_than_asked_for(
    database: Database, hold: Hold
) -> None:
    hold.close()
    sent = [await put(database, name, name) for name in ("a", "b", "c")]
    async with hosting(database, hold.model, concurrency=2):
        await running(database, "answering 2 messages in 2 conversations")
        await until(lambda: asyncio.sleep(0, len(hold.asked) == 2))
        hold.open()
        await replies(database, *sent)
    assert sorted(hold.asked[:2]) == ["a", "b"]
    assert hold.asked[2:] == ["c"]


async def test_the_board_tells_a_failure_beside_a_conversation_that_goes_on(
    database: Database, hold: Hold
) -> None:
    hold.close()
    fails = f"command:if grep -q bad; then exit 3; fi; {hold.model.removeprefix('command:')}"
    async with hosting(database, fails, retry_delay=timedelta(hours=1)):
        await put(database, "good", "a")
        await running(database, "answering 1 message in a")
        await put(database, "bad", "b")
        shown = (
            "SELECT status || coalesce(': ' || detail, '') FROM assistant.board_events "
            "WHERE agent = 'conversation' ORDER BY id"
        )
        await until_equal(
            database,
            shown,
            [
                "idle",
                "running: answering 1 message in a",
                "running: answering 2 messages in 2 conversations",
                "failed: turn 2 failed: the model's command exited with 3",
                "running: answering 1 message in a",
            ],
        )
        hold.open()
        await until_equal(database, shown + " DESC LIMIT 1", ["idle"])


@pytest.mark.parametrize("since", ["another closed the turn", "a failure was shown late"])
async def test_what_is_shown_is_compared_with_what_runs(database: Database, since: str) -> None:
    lease = await leases.acquire(database, ["conversation"])
    board = await create_status_board(database, lease)
    host = Host(
        database=database,
        board=board,
        lease=lease,
        models={"conversation": get_model("offline")},
    )
    agent = ConversationAgent(host, conversation)
    await put(database, "hello")
    await agent.claim(1)
    if since.startswith("another"):
        await rows(database, "UPDATE assistant.turns SET outcome = 'interrupted', ended_at = now()")
    else:
        await rows(database, "UPDATE assistant.turns SET outcome = 'failed', ended_at = now()")
        await board.update("conversation", {"status": "failed", "detail": "late"})
    await agent.show([], IDLE)
    assert await rows(database, ENTRY) == [IDLE]
    assert board.get() == {"conversation": IDLE}


async def test_workers_under_two_names_share_the_inbox(database: Database, hold: Hold) -> None:
    hold.close()
    async with (
        hosting(database, hold.model, agents=["conversation"], concurrency=1),
        hosting(database, hold.model, agents=["conversation@b"], concurrency=1),
    ):
        sent = [await put(database, name, name) for name in ("a", "b")]
        await until_equal(
            database,
            "SELECT count(DISTINCT agent), count(DISTINCT conversation) FROM assistant.turns "
            "WHERE outcome = 'running'",
            [(2, 2)],
        )
        both = "SELECT count(*) FROM assistant.agent_status WHERE status = 'running'"
        await until_equal(database, both, [2])
        board = await database.kv.get("status_board")
        sent += [await put(database, f"{name} again", name) for name in ("a", "b")]
        assert await database.kv.get("status_board") == board
        hold.open()
        assert await replies(database, *sent) == ["re: a", "re: b", "re: a again", "re: b again"]


async def test_what_a_dead_worker_had_begun_is_answered_by_another(
    database: Database, hold: Hold
) -> None:
    message = await put(database, "hello")
    lost = await leases.acquire(database, ["conversation@b"])
    [turn] = await worker_of(database, lost).claim("offline")
    async with hosting(database, hold.model, agents=["conversation"]):
        await until_equal(database, ENTRY, [IDLE])
        await rows(
            database,
            "UPDATE assistant.leases SET expires_at = now() WHERE agent = 'conversation@b'",
        )
        await rows(database, "SELECT pg_notify('assistant_messages', '')")
        assert await replies(database, message) == ["re: hello"]
    outcomes = await rows(database, "SELECT agent, outcome FROM assistant.turns ORDER BY id")
    assert outcomes == [("conversation@b", "interrupted"), ("conversation", "done")]
    assert turn.agent == "conversation@b"


async def test_commands_among_messages_are_obeyed_one_by_one(
    database: Database, hold: Hold
) -> None:
    sent = [await put(database, text) for text in ("one", "/remember tea", "two", "/nonsense")]
    async with hosting(database, hold.model):
        said = await replies(database, *sent)
    shared = "re: one\nre: two"
    unknown = "There is no command /nonsense; /help lists them."
    assert said == [shared, "Remembered.", shared, unknown]
    assert hold.asked == ["one\ntwo"]
    assert sorted(await rows(database, SPOKEN)) == sorted([shared, "Remembered.", unknown])


async def test_commands_are_obeyed_also_where_the_model_fails(
    database: Database, hold: Hold
) -> None:
    hold.break_down()
    command, text = await put(database, "/remember tea"), await put(database, "hello")
    async with hosting(database, hold.model):
        assert await replies(database, command) == ["Remembered."]
        with pytest.raises(AgentFailedError, match=r"exited with 3: kaput"):
            await replies(database, text)
    assert len(await database.kv.list_keys("memory/notes/")) == 1


async def test_a_failing_model_is_asked_three_times_and_the_board_tells(
    database: Database, hold: Hold
) -> None:
    hold.break_down()
    async with hosting(database, hold.model):
        with pytest.raises(AgentFailedError, match=r"in 3 attempts: .* exited with 3: kaput"):
            await ask(database, "hello")
        (last,) = await rows(database, "SELECT max(id) FROM assistant.turns")
        reason = "the model's command exited with 3: kaput"
        failed = {"status": "failed", "detail": f"turn {last} failed: {reason}"}
        await until_equal(database, ENTRY, [failed])
        hold.mend()
        assert await ask(database, "again") == "re: again"
        await until_equal(database, ENTRY, [IDLE])
    assert hold.asked == ["hello"] * 3 + ["again"]
    turns = await rows(database, "SELECT outcome, error FROM assistant.turns ORDER BY id")
    assert turns == [("failed", "the model's command exited with 3: kaput")] * 3 + [("done", None)]


async def test_a_command_that_takes_too_long_is_ended_with_all_it_started(
    database: Database, tmp_path: Path
) -> None:
    # The child ignores the polite signal.
    child = "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & echo $$ > group; wait"
    model = f"command:cd {tmp_path}; {child}"
    async with hosting(database, model, turn_timeout=timedelta(seconds=0.5)):
        await put(database, "hello")
        await until_equal(database, "SELECT outcome FROM assistant.turns LIMIT 1", ["timed_out"])
        group = int((tmp_path / "group").read_text())
        eventually(lambda: not living({group}), "the end of the child")
    first = "SELECT error FROM assistant.turns ORDER BY id LIMIT 1"
    assert await rows(database, first) == ["no result within the deadline of 500ms"]


async def test_a_message_claimed_by_a_process_that_died_is_answered_once(
    database: Database, hold: Hold
) -> None:
    lease = await leases.acquire(database, ["conversation", "heartbeat"])
    message = await put(database, "/remember tea")
    await worker_of(database, lease).claim("offline")
    await rows(database, "UPDATE assistant.leases SET expires_at = now()")
    async with hosting(database, hold.model):
        assert await replies(database, message) == ["Remembered."]
    assert await rows(database, SPOKEN) == ["Remembered."]
    assert len(await database.kv.list_keys("memory/notes/")) == 1
    outcomes = await rows(database, "SELECT outcome FROM assistant.turns ORDER BY id")
    assert outcomes == ["interrupted", "done"]


async def test_a_reply_that_is_kept_only_at_the_third_try_is_kept_once(
    database: Database, hold: Hold
) -> None:
    # The server ends the connection in the middle of the transaction, twice.
    await rows(database, "CREATE SEQUENCE tries")
    await rows(
        database,
        "CREATE FUNCTION hang_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('tries') < 3 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
        "RETURN NULL; END $$",
    )
    await rows(
        database,
        "CREATE TRIGGER hang_up AFTER INSERT ON assistant.schedules "
        "FOR EACH ROW EXECUTE FUNCTION hang_up()",
    )
    async with hosting(database, hold.model):
        text, command = await put(database, "hello"), await put(database, "/remind 2h tea")
        await replies(database, text, command)
    assert len(hold.asked) <= 2
    assert len(await rows(database, SPOKEN)) == 2
    assert await rows(database, "SELECT content FROM assistant.schedules") == ["tea"]
    assert await rows(database, "SELECT last_value FROM tries") == [3]


async def test_a_message_put_by_plain_sql_is_answered_whatever_its_conversation_is_called(
    database: Database,
) -> None:
    async with hosting(database):
        await rows(
            database,
            "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
            "VALUES (gen_random_uuid(), repeat('x', 3000), 'user', '/help', 'psql', 'waiting')",
        )
        await rows(database, "SELECT pg_notify('assistant_messages', '')")
        state = "SELECT state FROM assistant.messages WHERE role = 'user'"
        await until_equal(database, state, ["answered"])


async def test_a_message_is_found_although_no_notification_came(database: Database) -> None:
    async with hosting(database):
        assert "/remind" in await ask(database, "/help")
        await rows(
            database,
            "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
            "VALUES (gen_random_uuid(), 'main', 'user', 'quiet', 'psql', 'waiting')",
        )
        state = "SELECT state FROM assistant.messages WHERE content = 'quiet'"
        await until_equal(database, state, ["answered"])


async def test_an_idle_agent_leaves_the_database_alone(database: Database) -> None:
    async with hosting(database):
        await ask(database, "/help")
        count = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"

        async def reading() -> Any:
            await rows(database, "SELECT pg_stat_force_next_flush()")
            return (await rows(database, count))[0]

        async def rests() -> bool:
            before = await reading()
            await asyncio.sleep(2)
            return bool(await reading() - before < 10)

        # What others did before is counted late, so not every two seconds tell.
        await until(rests, "two seconds of rest")


async def test_an_unforeseen_reply_is_kept_as_text(database: Database) -> None:
    model = r"command:printf 'caf\351 \000 \033[31m red \357\273\277\n\n'"
    async with hosting(database, model):
        assert await ask(database, "hello") == "caf\ufffd \ufffd \x1b[31m red \ufeff"


async def test_the_board_is_idle_after_the_last_answer(database: Database) -> None:
    async with hosting(database) as task:
        await ask(database, "hello")
        await until_equal(database, ENTRY, [IDLE])
        assert not task.done()

    async def released() -> bool:
        return await rows(database, "SELECT agent FROM assistant.leases") == []

    await until(released)


async def test_a_signal_right_after_the_start_is_not_slept_through(database: Database) -> None:
    async with hosting(database, drain=timedelta(seconds=60)) as task:
        held = "SELECT count(*) FROM assistant.leases"
        await until_equal(database, held, [2])
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, PATIENCE_SECONDS)


async def test_commands_of_one_turn_see_what_those_before_them_changed(
    database: Database,
) -> None:
    texts = ["/remember buy milk", "/memory", "/remind 10m tea", "/reminders"]
    sent = [await put(database, text) for text in texts]
    async with hosting(database):
        _, notes, _, reminders = await replies(database, *sent)
    assert notes == "- buy milk"
    assert reminders.endswith("  tea")


async def test_a_note_that_is_too_long_is_refused_in_words(database: Database) -> None:
    async with hosting(database) as task:
        reply = await ask(database, "/remember " + "\x01" * 200_000)
        assert reply.startswith("That is too long to remember")
        assert not task.done()


async def test_a_history_of_histories_does_not_grow_without_bound(database: Database) -> None:
    async with hosting(database):
        await ask(database, "x" * 20_000)
        sizes = [len(await ask(database, "/history 4")) for _ in range(6)]
    assert max(sizes) < 5_000
