-- Processes that update the board at the same time share commits.

-- Entries whose writers wait for the commit of another; the next to write takes all of them along,
-- and marks them. An entry that is gone was not written: who still wants it begins again.
CREATE UNLOGGED TABLE IF NOT EXISTS assistant.board_waiting (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- What the timeline's index cannot hold must not stop those who take it along.
    agent text NOT NULL CHECK (octet_length(agent) <= 400),
    entry jsonb NOT NULL,
    token bigint,
    written boolean NOT NULL DEFAULT false,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

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

-- Locks the leases of agents whose entries wait, so that none is taken over; returns the token of
-- each, or null where it has lapsed. The caller holds the queue, for which whoever takes an agent
-- over, or gives it back, may wait with the lease locked: such a lease is left out, or all are.
CREATE OR REPLACE FUNCTION assistant.lock_leases_of_waiting() RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET lock_timeout = '1ms' AS $$
DECLARE
    held jsonb;
BEGIN
    SELECT jsonb_object_agg(agent, CASE WHEN live THEN token END) INTO held
    FROM (
        SELECT agent, token, expires_at > clock_timestamp() AS live FROM assistant.leases
        WHERE agent IN (SELECT agent FROM assistant.board_waiting WHERE NOT written)
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
CREATE OR REPLACE FUNCTION assistant.write_waiting(but jsonb) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    tokens jsonb;
    entries jsonb;
    complete boolean;
BEGIN
    -- Nobody wants them any more: a writer gives up after 15 seconds, and collects within moments.
    DELETE FROM assistant.board_waiting WHERE at < clock_timestamp()
        - CASE WHEN written THEN interval '1 minute' ELSE interval '20 seconds' END;
    tokens := assistant.lock_leases_of_waiting();
    LOOP
        WITH next AS (
            SELECT DISTINCT ON (agent) id FROM assistant.board_waiting AS waiting
            WHERE NOT written AND NOT but ? agent AND CASE
                WHEN tokens ? agent THEN token IS NOT DISTINCT FROM (tokens ->> agent)::bigint
                ELSE token IS NULL AND NOT EXISTS (
                    SELECT FROM assistant.leases WHERE leases.agent = waiting.agent) END
            ORDER BY agent, id
        ), taken AS (
            UPDATE assistant.board_waiting SET written = true WHERE id IN (SELECT id FROM next)
            RETURNING agent, entry
        )
        -- Counted as it was before, it saves a last round that would find nothing.
        SELECT jsonb_object_agg(agent, entry),
            count(*) = (SELECT count(*) FROM assistant.board_waiting WHERE NOT written)
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
END
$$;

-- Writes what others wait for, and then entries of one's own. The caller holds the queue.
-- What waits for the same agents may be newer, or older and given up: who still wants it begins
-- again. Where such an entry came since this statement began, and another took it along, nothing is
-- written and false returned: it may be newer, and who still wants these begins again.
CREATE OR REPLACE FUNCTION assistant.write_after_waiting(entries jsonb) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM assistant.board_waiting
    WHERE written AND entries ? agent AND at > statement_timestamp();
    IF FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM assistant.board_waiting WHERE NOT written AND entries ? agent;
    PERFORM assistant.write_waiting(entries);
    PERFORM assistant.merge_board(entries);
    RETURN true;
END
$$;

-- Whether the queue could be locked without waiting for anybody.
CREATE OR REPLACE FUNCTION assistant.lock_queue_at_once() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE NOWAIT;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;

-- Removes an entry that waits if it was written, or `withdraw` it; returns whether it was written.
CREATE OR REPLACE FUNCTION assistant.collect(waiting_id bigint, withdraw boolean) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    was_written boolean;
BEGIN
    DELETE FROM assistant.board_waiting WHERE id = waiting_id AND (written OR withdraw)
    RETURNING written INTO was_written;
    RETURN coalesce(was_written, false);
END
$$;

-- As before, but that entries that wait come first, and that it returns an empty array where it
-- wrote, and null where it wrote nothing, and whoever still wants it is to call again.
-- (update_board writes none of them along; programs that call it leave none.)
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
        IF NOT FOUND AND NOT assistant.write_after_waiting(rounds -> place) THEN
            RETURN NULL;
        END IF;
    END LOOP;
    RETURN '{}';
END
$$;

-- Puts one entry on the board, and returns what write_board does; null as well where somebody else
-- holds the queue.
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
    IF NOT assistant.lock_queue_at_once() THEN
        RETURN NULL;
    END IF;
    UPDATE public.kv SET expires_at = NULL, value = value || jsonb_build_object(the_agent, entry)
    WHERE key = 'status_board' AND jsonb_typeof(value) = 'object'
        AND NOT EXISTS (SELECT FROM assistant.board_waiting);
    IF NOT FOUND AND NOT assistant.write_after_waiting(jsonb_build_object(the_agent, entry)) THEN
        RETURN NULL;
    END IF;
    RETURN '{}';
END
$$;

-- Writes all entries that wait, and returns of one of them what write_board does. The caller holds
-- the queue, and must not wait for a lease.
CREATE OR REPLACE FUNCTION assistant.write_with_others(
    waiting_id bigint, the_agent text, given bigint
) RETURNS text[] LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM assistant.write_waiting('{}');
    RETURN CASE
        WHEN assistant.collect(waiting_id, true) THEN '{}'
        WHEN (SELECT token FROM assistant.leases
            WHERE agent = the_agent AND expires_at > clock_timestamp()) IS DISTINCT FROM given
        THEN ARRAY[the_agent] END;
END
$$;

-- Puts one entry on the board, as write_board does, in a commit that it shares with all who come
-- while another is under way. It commits, so that it cannot be called within a transaction.
CREATE OR REPLACE PROCEDURE assistant.put_entry(
    the_agent text, entry jsonb, given bigint, INOUT refused text[]
) LANGUAGE plpgsql AS $$
DECLARE
    waiting_id bigint;
BEGIN
    -- A hint that is cheap to ask for: anybody can hold this lock, and the queue is what locks.
    IF pg_try_advisory_xact_lock(7238114906) THEN
        refused := assistant.write_entry(the_agent, entry, given);
        IF refused IS NOT NULL THEN
            RETURN;
        END IF;
        -- Not COMMIT, which might wait for the disk.
        ROLLBACK;
    END IF;
    INSERT INTO assistant.board_waiting (agent, entry, token)
    VALUES (the_agent, entry, given)
    RETURNING id INTO waiting_id;
    COMMIT;
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    IF NOT assistant.collect(waiting_id, false) THEN
        refused := assistant.write_with_others(waiting_id, the_agent, given);
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
        AND NOT EXISTS (SELECT FROM assistant.board_waiting);
    IF NOT FOUND AND NOT assistant.write_after_waiting(jsonb_build_object(worker, entry)) THEN
        RAISE serialization_failure USING MESSAGE = 'a newer status was written meanwhile';
    END IF;
    RETURN entry;
END
$$;
