-- Processes that update the board at the same time share commits, and one alone does less.

-- Entries whose writers wait for the commit of another; the next takes all of them along. None is
-- acknowledged, so that a crash may lose them.
CREATE UNLOGGED TABLE IF NOT EXISTS assistant.board_waiting (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agent text NOT NULL,
    entry jsonb NOT NULL,
    token bigint,
    backend integer NOT NULL DEFAULT pg_backend_pid(),
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Merges entries into the board, or into an empty one where no board is stored.
CREATE OR REPLACE FUNCTION assistant.merge_board(entries jsonb) RETURNS void
LANGUAGE plpgsql
-- A plan made while a table was small must not be kept when it is large.
SET enable_seqscan = off AS $$
BEGIN
    UPDATE public.kv SET expires_at = NULL, value =
        CASE WHEN jsonb_typeof(value) = 'object' THEN value ELSE '{}' END || entries
    WHERE key = 'status_board';
    IF NOT FOUND THEN
        INSERT INTO public.kv AS board (key, value) VALUES ('status_board', entries)
        ON CONFLICT (key) DO UPDATE SET expires_at = NULL, value =
            CASE WHEN jsonb_typeof(board.value) = 'object' THEN board.value ELSE '{}' END
            || excluded.value;
    END IF;
END
$$;

-- Writes the entries that wait and that their writers may write, those of an agent in their order.
-- The caller holds the queue.
CREATE OR REPLACE FUNCTION assistant.write_waiting() RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    entries jsonb;
    taken bigint;
    waiting bigint;
BEGIN
    LOOP
        WITH held AS MATERIALIZED (
            -- Whoever takes an agent over, or gives it back, may wait for the queue with its lease
            -- locked: that entry is left to its writer.
            SELECT agent, token, expires_at > clock_timestamp() AS live FROM assistant.leases
            WHERE agent IN (SELECT agent FROM assistant.board_waiting)
            ORDER BY agent FOR KEY SHARE SKIP LOCKED
        ), next AS (
            SELECT DISTINCT ON (board_waiting.agent) board_waiting.id
            FROM assistant.board_waiting LEFT JOIN held USING (agent)
            WHERE CASE WHEN held.live THEN board_waiting.token = held.token
                WHEN board_waiting.token IS NOT NULL THEN false
                ELSE held.live IS NOT NULL OR NOT EXISTS (
                    SELECT FROM assistant.leases WHERE leases.agent = board_waiting.agent) END
            ORDER BY board_waiting.agent, board_waiting.id
        ), gone AS (
            DELETE FROM assistant.board_waiting WHERE id IN (SELECT id FROM next)
            RETURNING agent, entry, backend, at
        )
        -- A writer that is gone wants it no more.
        SELECT jsonb_object_agg(agent, entry) FILTER (
                WHERE at > clock_timestamp() - interval '1 second'
                    OR EXISTS (SELECT FROM pg_stat_activity WHERE pid = backend)),
            count(*), (SELECT count(*) FROM assistant.board_waiting)
        INTO entries, taken, waiting
        FROM gone;
        IF entries IS NOT NULL THEN
            PERFORM assistant.merge_board(entries);
        END IF;
        EXIT WHEN taken IN (0, waiting);
    END LOOP;
END
$$;

-- As before, after what waits.
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
            AND NOT EXISTS (SELECT FROM assistant.board_waiting);
        IF NOT FOUND THEN
            PERFORM assistant.write_waiting();
            PERFORM assistant.merge_board(rounds -> place);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Puts one entry on the board, as write_board; whether it was written, or else refused.
CREATE OR REPLACE FUNCTION assistant.write_entry(the_agent text, entry jsonb, given bigint)
RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    held bigint;
    live boolean;
BEGIN
    SELECT token, expires_at > clock_timestamp() INTO held, live
    FROM assistant.leases WHERE agent = the_agent FOR KEY SHARE;
    IF (CASE WHEN live THEN held IS DISTINCT FROM given ELSE given IS NOT NULL END) THEN
        RETURN false;
    END IF;
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    UPDATE public.kv SET expires_at = NULL, value = value || jsonb_build_object(the_agent, entry)
    WHERE key = 'status_board' AND jsonb_typeof(value) = 'object'
        AND NOT EXISTS (SELECT FROM assistant.board_waiting);
    IF NOT FOUND THEN
        PERFORM assistant.write_waiting();
        PERFORM assistant.merge_board(jsonb_build_object(the_agent, entry));
    END IF;
    RETURN true;
END
$$;

-- The same in a commit that it shares with all who come while another is under way. It commits, so
-- that it cannot be called within a transaction.
CREATE OR REPLACE PROCEDURE assistant.put_entry(
    the_agent text, entry jsonb, given bigint, INOUT written boolean
) LANGUAGE plpgsql AS $$
DECLARE
    number bigint;
    place tid;
BEGIN
    -- Anybody can hold this lock. It tells whether to wait is likely; the queue is what locks.
    IF pg_try_advisory_xact_lock(7238114906) THEN
        written := assistant.write_entry(the_agent, entry, given);
        RETURN;
    END IF;
    INSERT INTO assistant.board_waiting AS waiting (agent, entry, token)
    VALUES (the_agent, put_entry.entry, given)
    RETURNING waiting.id, waiting.ctid INTO number, place;
    COMMIT;
    -- All that were taken along go on at the same time.
    LOCK TABLE assistant.board_queue IN SHARE MODE;
    PERFORM FROM assistant.board_waiting WHERE ctid = place AND id = number;
    written := NOT FOUND;
    IF NOT written THEN
        COMMIT;
        PERFORM FROM assistant.leases WHERE agent = the_agent FOR KEY SHARE;
        LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
        PERFORM assistant.write_waiting();
        DELETE FROM assistant.board_waiting WHERE ctid = place AND id = number;
        written := NOT FOUND;
    END IF;
    IF written AND current_setting('synchronous_standby_names') <> '' THEN
        -- Whoever wrote it may have broken off its wait for the standbys: this one waits for them.
        PERFORM pg_logical_emit_message(true, 'assistant', '');
    END IF;
END
$$;

-- As before, after what waits. Puts on the board what a worker does, which its turns tell, or `at_rest` where none runs.
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
        AND NOT EXISTS (SELECT FROM assistant.board_waiting);
    IF NOT FOUND THEN
        PERFORM assistant.write_waiting();
        PERFORM assistant.merge_board(jsonb_build_object(worker, entry));
    END IF;
    RETURN entry;
END
$$;

-- As before, with fewer queries.
CREATE OR REPLACE FUNCTION assistant.notify_kv() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    keys text[] := ARRAY(SELECT key FROM changed LIMIT 101);
BEGIN
    IF cardinality(keys) > 100 THEN
        keys := '{""}';
    END IF;
    -- Equal notifications of a transaction are one.
    FOR place IN 1 .. cardinality(keys) LOOP
        PERFORM pg_notify('assistant_kv',
            CASE WHEN octet_length(keys[place]) > 512 THEN '' ELSE keys[place] END);
    END LOOP;
    RETURN NULL;
END
$$;
