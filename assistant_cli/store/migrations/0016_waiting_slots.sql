-- What waits for another's commit uses its row again: rows that came and went for each update were
-- read past by every update until they were vacuumed. What the step before had for that stays, for
-- calls that are under way: board_waiting, lock_leases_of_waiting, write_waiting,
-- write_after_waiting, lock_queue_at_once, collect and write_with_others.

-- A row each backend that had to wait for the commit of another, with the entry that it waits with,
-- or waited last; the next to write takes all of them along, and marks them. An entry that is gone
-- was not written: who still wants it begins again.
-- `place` tells the order in which they came, `written` that another wrote it, `collected` that its
-- writer knows.
CREATE UNLOGGED TABLE IF NOT EXISTS assistant.board_slots (
    pid integer PRIMARY KEY,
    place bigint GENERATED ALWAYS AS IDENTITY,
    -- What the timeline's index cannot hold must not stop those who take it along.
    agent text NOT NULL CHECK (octet_length(agent) <= 400),
    entry jsonb NOT NULL,
    token bigint,
    written boolean NOT NULL DEFAULT false,
    collected boolean NOT NULL DEFAULT false,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Locks the leases of agents whose entries wait, so that none is taken over; returns the token of
-- each, or null where it has lapsed. The caller holds the queue, for which whoever takes an agent
-- over, or gives it back, may wait with the lease locked: such a lease is left out, or all are.
CREATE OR REPLACE FUNCTION assistant.lock_leases_of_slots() RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET lock_timeout = '1ms' AS $$
DECLARE
    held jsonb;
BEGIN
    SELECT jsonb_object_agg(agent, CASE WHEN live THEN token END) INTO held
    FROM (
        SELECT agent, token, expires_at > clock_timestamp() AS live FROM assistant.leases
        WHERE agent IN (SELECT agent FROM assistant.board_slots WHERE NOT written)
        ORDER BY agent FOR KEY SHARE SKIP LOCKED
    ) AS locked;
    RETURN coalesce(held, '{}');
-- Where a lease has been renewed since this began, SKIP LOCKED does wait.
EXCEPTION WHEN lock_not_available THEN
    RETURN '{}';
END
$$;

-- Writes the entries that wait and that their writers may write, those of an agent in their order,
-- but for the agents of which `but` has entries. The caller holds the queue.
CREATE OR REPLACE FUNCTION assistant.write_slots(but jsonb) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    tokens jsonb;
    entries jsonb;
    complete boolean;
BEGIN
    -- Nobody wants them any more: a writer gives up after 15 seconds, and collects within moments.
    DELETE FROM assistant.board_slots WHERE at < clock_timestamp() - CASE
        WHEN collected THEN interval '2 seconds'
        WHEN written THEN interval '1 minute' ELSE interval '20 seconds' END;
    tokens := assistant.lock_leases_of_slots();
    LOOP
        WITH next AS (
            SELECT DISTINCT ON (agent) pid, place FROM assistant.board_slots AS waiting
            WHERE NOT written AND NOT but ? agent AND CASE
                WHEN tokens ? agent THEN token IS NOT DISTINCT FROM (tokens ->> agent)::bigint
                ELSE token IS NULL AND NOT EXISTS (
                    SELECT FROM assistant.leases WHERE leases.agent = waiting.agent) END
            ORDER BY agent, place
        ), taken AS (
            -- A backend that was broken off may put another entry into its slot at the moment.
            UPDATE assistant.board_slots AS slot SET written = true FROM next
            WHERE slot.pid = next.pid AND slot.place = next.place
            RETURNING slot.agent, slot.entry
        )
        -- Counted as it was before, it saves a last round that would find nothing.
        SELECT jsonb_object_agg(agent, entry),
            count(*) = (SELECT count(*) FROM assistant.board_slots WHERE NOT written)
        INTO entries, complete
        FROM taken;
        EXIT WHEN entries IS NULL;
        PERFORM assistant.merge_board(entries);
        IF current_setting('synchronous_commit') = 'off' THEN
            -- Others rely on this commit.
            PERFORM set_config('synchronous_commit', 'local', true);
        END IF;
        EXIT WHEN complete;
    END LOOP;
    -- What its writer may write again one day must not come after what is newer.
    DELETE FROM assistant.board_slots AS older USING assistant.board_slots AS newer
    WHERE NOT older.written AND newer.written AND newer.agent = older.agent
        AND newer.place > older.place;
END
$$;

-- Writes what others wait for, and then entries of one's own. The caller holds the queue.
-- What waits for the same agents may be newer, or older and given up: who still wants it begins
-- again.
CREATE OR REPLACE FUNCTION assistant.write_after_slots(entries jsonb) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM assistant.board_slots WHERE NOT written AND entries ? agent;
    PERFORM assistant.write_slots(entries);
    PERFORM assistant.merge_board(entries);
END
$$;

-- As before, but that entries that wait come first, and that it returns an empty array where it
-- wrote. (update_board writes none of them along; programs that call it leave none.)
CREATE OR REPLACE FUNCTION assistant.write_board(rounds jsonb, tokens jsonb) RETURNS text[]
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    refused text[];
BEGIN
    -- In one order for all, so that a batch and a take-over never wait for each other.
    SELECT array_agg(held.agent) FILTER (WHERE CASE WHEN held.live
            THEN held.token IS DISTINCT FROM held.given ELSE held.given IS NOT NULL END),
        tokens - coalesce(array_agg(held.agent), '{}')
    INTO refused, tokens
    FROM (
        SELECT agent, token, expires_at > clock_timestamp() AS live,
            (tokens ->> agent)::bigint AS given
        FROM assistant.leases WHERE agent = ANY (ARRAY(SELECT jsonb_object_keys(rounds -> 0)))
        ORDER BY agent FOR KEY SHARE
    ) AS held;
    -- What is left has a token but no lease.
    IF tokens <> '{}' THEN
        refused := refused || ARRAY(SELECT jsonb_object_keys(tokens));
    END IF;
    IF refused IS NOT NULL THEN
        RETURN refused;
    END IF;
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    FOR place IN 0 .. jsonb_array_length(rounds) - 1 LOOP
        UPDATE public.kv SET expires_at = NULL, value = value || (rounds -> place)
        WHERE key = 'status_board' AND jsonb_typeof(value) = 'object'
            AND NOT EXISTS (SELECT FROM assistant.board_slots WHERE NOT written);
        IF NOT FOUND THEN
            PERFORM assistant.write_after_slots(rounds -> place);
        END IF;
    END LOOP;
    RETURN '{}';
END
$$;

-- Puts one entry on the board, and returns what write_board does.
CREATE OR REPLACE FUNCTION assistant.write_entry(the_agent text, entry jsonb, given bigint)
RETURNS text[] LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    held bigint;
    live boolean;
BEGIN
    SELECT token, expires_at > clock_timestamp() INTO held, live
    FROM assistant.leases WHERE agent = the_agent FOR KEY SHARE;
    IF (CASE WHEN live THEN held IS DISTINCT FROM given ELSE given IS NOT NULL END) THEN
        RETURN ARRAY[the_agent];
    END IF;
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    UPDATE public.kv SET expires_at = NULL, value = value || jsonb_build_object(the_agent, entry)
    WHERE key = 'status_board' AND jsonb_typeof(value) = 'object'
        AND NOT EXISTS (SELECT FROM assistant.board_slots WHERE NOT written);
    IF NOT FOUND THEN
        PERFORM assistant.write_after_slots(jsonb_build_object(the_agent, entry));
    END IF;
    RETURN '{}';
END
$$;

-- Whether another has written the entry of this backend, which then knows it.
CREATE OR REPLACE FUNCTION assistant.collect_slot() RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    UPDATE assistant.board_slots SET collected = true WHERE pid = pg_backend_pid() AND written;
    RETURN FOUND;
END
$$;

-- Writes all entries that wait, and returns of that of this backend what write_board does; null
-- where it was not written, and whoever still wants it is to call again. The caller holds the queue,
-- and must not wait for a lease.
CREATE OR REPLACE FUNCTION assistant.write_with_slots(the_agent text, given bigint) RETURNS text[]
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM assistant.write_slots('{}');
    IF assistant.collect_slot() THEN
        RETURN '{}';
    END IF;
    DELETE FROM assistant.board_slots WHERE pid = pg_backend_pid();
    RETURN CASE WHEN (SELECT token FROM assistant.leases
            WHERE agent = the_agent AND expires_at > clock_timestamp()) IS DISTINCT FROM given
        THEN ARRAY[the_agent] END;
END
$$;

-- Puts one entry on the board, as write_board does, in a commit that it shares with all who come
-- while another is under way; null where it was not written, and whoever still wants it is to call
-- again. It commits, so that it cannot be called within a transaction.
CREATE OR REPLACE PROCEDURE assistant.put_entry(
    the_agent text, entry jsonb, given bigint, INOUT refused text[]
) LANGUAGE plpgsql AS $$
BEGIN
    -- A hint that is cheap to ask for: anybody can hold this lock, and the queue is what locks.
    IF pg_try_advisory_xact_lock(7238114906) THEN
        refused := assistant.write_entry(the_agent, entry, given);
        RETURN;
    END IF;
    INSERT INTO assistant.board_slots (pid, agent, entry, token)
    VALUES (pg_backend_pid(), the_agent, entry, given)
    ON CONFLICT (pid) DO UPDATE SET
        place = DEFAULT, agent = excluded.agent, entry = excluded.entry, token = excluded.token,
        written = false, collected = false, at = excluded.at;
    -- It does not wait for the disk.
    COMMIT;
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    IF NOT assistant.collect_slot() THEN
        refused := assistant.write_with_slots(the_agent, given);
        RETURN;
    END IF;
    refused := '{}';
    IF current_setting('synchronous_standby_names') <> '' THEN
        COMMIT;
        -- Whoever wrote it may have broken off its wait for the standbys: so this one waits.
        PERFORM pg_logical_emit_message(true, 'assistant', '');
    END IF;
END
$$;

-- As before, but that entries that wait come first. Puts on the board what a worker does, which its
-- turns tell, or `at_rest` where none runs.
-- Returns its entry. The caller has made sure, under a lock, that the lease is the worker's.
CREATE OR REPLACE FUNCTION assistant.show_turns(worker text, held bigint, at_rest jsonb)
RETURNS jsonb LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    entry jsonb := at_rest;
    doing text;
BEGIN
    -- Whoever shows waits for those before, and sees what they have committed.
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    SELECT CASE count(*) WHEN 1 THEN 'answering 1 message in '
            ELSE 'answering ' || count(*) || ' messages in ' END
        || CASE count(DISTINCT turns.id) WHEN 1 THEN min(turns.conversation)
            ELSE count(DISTINCT turns.id) || ' conversations' END
    INTO doing
    FROM assistant.turns JOIN assistant.messages ON messages.turn_id = turns.id
    WHERE turns.agent = worker AND turns.token = held AND turns.outcome = 'running'
        AND messages.state = 'working'
    HAVING count(*) > 0;
    IF FOUND THEN
        IF octet_length(doing) > 2000 THEN
            doing := left(doing, 499) || '…';
        END IF;
        entry := jsonb_build_object('status', 'running', 'detail', doing);
    END IF;
    UPDATE public.kv SET expires_at = NULL, value = value || jsonb_build_object(worker, entry)
    WHERE key = 'status_board' AND jsonb_typeof(value) = 'object'
        AND NOT EXISTS (SELECT FROM assistant.board_slots WHERE NOT written);
    IF NOT FOUND THEN
        PERFORM assistant.write_after_slots(jsonb_build_object(worker, entry));
    END IF;
    RETURN entry;
END
$$;
