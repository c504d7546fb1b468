-- What waits for another's commit uses its row again: rows that came and went for each update were
-- read past by every update until they were vacuumed.

DO $$
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = to_regclass('assistant.board_waiting')) = 'r' THEN
        -- Who waits sees that its entry is gone, and begins again.
        DROP TABLE assistant.board_waiting;
    END IF;
END
$$;

-- A row each backend that had to wait, which has the entry that it waits with, or waited last.
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

-- Entries whose writers wait for the commit of another; the next to write takes all of them along,
-- and marks them. An entry that is gone was not written: who still wants it begins again.
CREATE OR REPLACE VIEW assistant.board_waiting AS
SELECT * FROM assistant.board_slots WHERE NOT collected;

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
    DELETE FROM assistant.board_slots WHERE at < clock_timestamp() - CASE
        WHEN collected THEN interval '2 seconds'
        WHEN written THEN interval '1 minute' ELSE interval '20 seconds' END;
    tokens := assistant.lock_leases_of_waiting();
    LOOP
        WITH next AS (
            SELECT DISTINCT ON (agent) pid FROM assistant.board_slots AS waiting
            WHERE NOT written AND NOT but ? agent AND CASE
                WHEN tokens ? agent THEN token IS NOT DISTINCT FROM (tokens ->> agent)::bigint
                ELSE token IS NULL AND NOT EXISTS (
                    SELECT FROM assistant.leases WHERE leases.agent = waiting.agent) END
            ORDER BY agent, place
        ), taken AS (
            UPDATE assistant.board_slots SET written = true WHERE pid IN (SELECT pid FROM next)
            RETURNING agent, entry
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
END
$$;

-- Writes what others wait for, and then entries of one's own. The caller holds the queue.
-- What waits for the same agents may be newer, or older and given up: who still wants it begins
-- again. Where such an entry came since this statement began, and another took it along, nothing is
-- written and false returned: it may be newer, and who still wants these begins again.
CREATE OR REPLACE FUNCTION assistant.write_after_waiting(entries jsonb) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM assistant.board_slots
    WHERE written AND entries ? agent AND at > statement_timestamp();
    IF FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM assistant.board_slots WHERE NOT written AND entries ? agent;
    PERFORM assistant.write_waiting(entries);
    PERFORM assistant.merge_board(entries);
    RETURN true;
END
$$;

-- Whether the entry of this backend was written, which it then knows; else it may `withdraw` it.
CREATE OR REPLACE FUNCTION assistant.collect(waiting_id bigint, withdraw boolean) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    UPDATE assistant.board_slots SET collected = true WHERE pid = waiting_id AND written;
    IF FOUND THEN
        RETURN true;
    END IF;
    IF withdraw THEN
        DELETE FROM assistant.board_slots WHERE pid = waiting_id;
    END IF;
    RETURN false;
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
        AND NOT EXISTS (SELECT FROM assistant.board_waiting);
    IF NOT FOUND AND NOT assistant.write_after_waiting(jsonb_build_object(the_agent, entry)) THEN
        RETURN NULL;
    END IF;
    RETURN '{}';
END
$$;
DROP FUNCTION IF EXISTS assistant.lock_queue_at_once();

-- Puts one entry on the board, as write_board does, in a commit that it shares with all who come
-- while another is under way. It commits, so that it cannot be called within a transaction.
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
    COMMIT;
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    IF NOT assistant.collect(pg_backend_pid(), false) THEN
        refused := assistant.write_with_others(pg_backend_pid(), the_agent, given);
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
