"""A connection whose waits have an end: a statement that is given up is cancelled on the server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection, generators, pq, waiting
from psycopg.abc import PQGen
from psycopg.errors import Diagnostic
from psycopg.rows import TupleRow

RV = TypeVar("RV")

_BREAK_OFF_SECONDS = 2.0
"""How long a cancellation that gets no answer may hold up whoever gives up."""


class BoundedConnection(AsyncConnection[TupleRow]):
    """A connection that is closed when a wait for it passes its deadline, or is cancelled.

    Before it is closed, the server is asked to cancel the statement, and its answer is waited for:
    an old write must not be carried out after a newer one. As that ends every wait, psycopg need
    not wake up every tenth of a second to see whether it was interrupted.

    Attributes:
        backend: which process of the server serves it; "" where that is not known.
        pooled: a pooler such as PgBouncer may serve each transaction by another backend: nothing
            is prepared, and notifications do not arrive.
        unconfirmed: a commit of it is on this server alone, where standbys should have it as well.
        deadline: when waits for it end, by time.monotonic.
        unanswered: the server has not answered the request to cancel, and may still carry out the
            statement: it ignores a request that comes before it has read the statement.
    """

    backend = ""
    pooled = False
    unconfirmed = False
    unanswered = False
    deadline = inf

    def notice(self, diagnostic: Diagnostic) -> None:
        """Take note of a warning, whose text is in the server's language."""
        self.unconfirmed |= diagnostic.source_function == "SyncRepWaitForLSN"

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 60.0,
        timeout: float | None = None,  # noqa: ASYNC109 (psycopg's own)
    ) -> RV:
        # A time-out of asyncio around each use would cost as much as all else here.
        remaining = self.deadline - monotonic()
        timeout = remaining if timeout is None else min(timeout, remaining)
        try:
            return await waiting.wait_async(
                gen, self.pgconn.socket, interval=interval, timeout=timeout
            )
        except asyncio.CancelledError:
            await self._give_up(gen)
            raise
        except psycopg.OperationalError as error:
            if error.sqlstate or monotonic() < self.deadline:
                raise
            await self._give_up(gen)
            raise TimeoutError from None

    async def _give_up(self, gen: PQGen[RV]) -> None:
        """Have the server cancel what it does, and close the connection."""
        try:
            if self._is_active():
                with suppress(psycopg.Error):
                    await self._break_off(gen)
        finally:
            self.unanswered = bool(self.backend) and self._is_active()
            self.pgconn.finish()

    def _is_active(self) -> bool:
        return self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE

    async def _break_off(self, gen: PQGen[RV]) -> None:
        """Ask the server to cancel what it does, and wait until it has answered."""
        end = monotonic() + _BREAK_OFF_SECONDS
        # Where libpq is older than 17, this raises, and the server notices within two seconds.
        request = self.pgconn.cancel_conn()
        request.start()
        await _to_its_end(
            waiting.wait_conn_async(
                generators.cancel(request), interval=_BREAK_OFF_SECONDS, timeout=_BREAK_OFF_SECONDS
            )
        )
        await waiting.wait_async(
            _resumed(gen),
            self.pgconn.socket,
            interval=_BREAK_OFF_SECONDS,
            timeout=end - monotonic(),
        )


def _resumed(gen: PQGen[RV]) -> PQGen[RV]:
    """Go on with a generator that is under way, telling it that nothing is ready yet.

    `wait_async` begins with next(), which a generator that waits to send does not accept.
    """
    ready: int = waiting.READY_NONE
    try:
        while True:
            ready = yield gen.send(ready)
    except StopIteration as end:
        result: RV = end.value
        return result


async def _to_its_end(sending: Coroutine[None, None, None]) -> None:
    """Await it to its end, even if cancelled: PgBouncer 1.18 crashes on a request cut short."""
    task = asyncio.create_task(sending)
    # Or asyncio would log that its exception was never retrieved.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
