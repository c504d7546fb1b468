"""The inbox: what is kept before it is acknowledged, what is refused, and what is read again."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import psycopg
import pytest

from assistant_cli.errors import BadDataError, ConflictError, NotFoundError, QueueFullError
from assistant_cli.messages import Reply
from assistant_cli.store import inbox
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease

from .claiming import answer, claim, fail, put, states, texts
from .hosting import rows, until_equal


async def test_a_message_is_committed_when_its_id_is_returned(database: Database, dsn: str) -> None:
    message = await put(database, "hello\nthere")
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        found = await other.execute("SELECT id, content, role, state FROM assistant.messages")
        assert await found.fetchall() == [(message, "hello\nthere", "user", "waiting")]


async def test_a_message_sent_again_under_its_id_is_kept_once(database: Database) -> None:
    sent = [put(database, "hello", external_id="mail-1") for _ in range(20)]
    assert len(set(await asyncio.gather(*sent))) == 1
    assert await states(database) == [("hello", "waiting", 0)]


@pytest.mark.parametrize(("text", "conversation"), [("bye", "main"), ("hello", "work")])
async def test_another_message_under_the_same_id_is_refused(
    database: Database, text: str, conversation: str
) -> None:
    await put(database, "hello", external_id="mail-1")
    with pytest.raises(ConflictError, match=r"mail-1"):
        await put(database, text, conversation, external_id="mail-1")
    assert len(await states(database)) == 1


async def test_an_id_is_the_sources_own(database: Database) -> None:
    await put(database, "hello", external_id="1")
    await put(database, "bye", external_id="1", source="discord")
    assert len(await states(database)) == 2


@pytest.mark.parametrize("text", ["", " \n\t", "a\x00b", "a\ud800b", "x" * 256_001, "ü" * 128_001])
async def test_what_cannot_be_kept_is_refused(database: Database, text: str) -> None:
    with pytest.raises(BadDataError):
        await put(database, text)
    assert await states(database) == []


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1bb", "\x00", "\udcff", "x" * 201])
async def test_bad_names_are_refused(database: Database, name: str) -> None:
    with pytest.raises(BadDataError, match=r"conversation|NUL|UTF-8"):
        await put(database, "hello", name)
    with pytest.raises(BadDataError, match=r"message id|NUL|UTF-8"):
        await put(database, "hello", external_id=name)


async def fill_queue(database: Database, count: int = 1_000) -> None:
    await rows(
        database,
        "INSERT INTO assistant.messages "
        "(id, conversation, role, content, source, external_id, state) "
        "SELECT gen_random_uuid(), 'main', 'user', n::text, 'cli', n::text, 'waiting' "
        "FROM generate_series(1, %s) AS n",
        count,
    )


async def test_no_more_wait_in_a_conversation_than_may(database: Database, lease: Lease) -> None:
    await fill_queue(database)
    with pytest.raises(QueueFullError, match=r"1000 messages wait .*; nothing was kept, try again"):
        await put(database, "hello")
    assert len(await states(database)) == 1_000
    await put(database, "hello", "work")
    assert len(texts(await claim(database, lease))) == 100
    await put(database, "hello")


async def test_one_that_waits_already_is_known_under_its_id_where_no_more_may(
    database: Database,
) -> None:
    await fill_queue(database)
    known = await rows(database, "SELECT id FROM assistant.messages WHERE external_id = '7'")
    assert [await put(database, "7", external_id="7")] == known
    with pytest.raises(ConflictError):
        await put(database, "8", external_id="7")
    with pytest.raises(QueueFullError):
        await put(database, "7", external_id="7", source="discord")


async def test_plain_sql_cannot_make_more_wait_either(database: Database) -> None:
    with pytest.raises(QueueFullError):
        await fill_queue(database, 1_001)
    assert await states(database) == []


async def test_plain_sql_cannot_make_a_message_larger_either(database: Database) -> None:
    insert = (
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
        "VALUES (gen_random_uuid(), 'main', 'user', repeat('\u00fc', %s), 'psql', 'waiting')"
    )
    await rows(database, insert, 128_000)
    with pytest.raises(BadDataError, match="at most 256,000 bytes; this has 256002"):
        await rows(database, insert, 128_001)
    assert len(await states(database)) == 1


async def test_turns_that_fail_give_back_to_a_queue_that_is_full(
    database: Database, lease: Lease
) -> None:
    await fill_queue(database)
    turn = await claim(database, lease)
    for number in range(100):
        await put(database, f"more {number}")
    await fail(database, lease, turn)
    assert {state for _, state, _ in await states(database)} == {"waiting"}
    with pytest.raises(QueueFullError):
        await put(database, "hello")


async def test_the_largest_message_is_kept_as_it_is(database: Database, lease: Lease) -> None:
    text = "ü" * 128_000
    await put(database, text)
    assert texts(await claim(database, lease)) == [text]


async def test_waiting_for_the_reply_of_no_message_ends(database: Database) -> None:
    with pytest.raises(NotFoundError):
        await inbox.wait_for_reply(database, uuid4())


async def test_a_reply_comes_also_after_the_connection_was_lost(
    database: Database, lease: Lease
) -> None:
    message = await put(database, "hello")
    waiting = asyncio.create_task(inbox.wait_for_reply(database, message))
    listening = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND query LIKE '%%message.attempts%%' AND state = 'idle'"
    )
    await until_equal(database, listening, [1])
    await rows(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND query LIKE '%%message.attempts%%' "
        "AND pid <> pg_backend_pid()",
    )
    turn = await claim(database, lease)
    await answer(database, lease, turn, [Reply(turn.messages, "hi")])
    assert await asyncio.wait_for(waiting, 20) == "hi"


async def test_history_is_the_end_of_one_conversation_oldest_first(database: Database) -> None:
    for text, conversation in [("1", "a"), ("2", "a"), ("x", "b"), ("3", "a")]:
        await put(database, text, conversation)
    history = await inbox.read_history(database, "a", 2)
    assert [message.content for message in history] == ["2", "3"]
