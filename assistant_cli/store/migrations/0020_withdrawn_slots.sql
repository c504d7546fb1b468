-- Who gives up waiting for another's commit takes back the entry that waits: it was written along
-- by whoever updated the board within the next 20 seconds, after what was newer.

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
    DELETE FROM assistant.board_slots
    WHERE at < clock_timestamp() - CASE
            WHEN collected THEN interval '2 seconds'
            WHEN written THEN interval '1 minute' ELSE interval '20 seconds' END
        -- Its writer is gone: looked for only of those that wait for long.
        OR NOT written AND at < clock_timestamp() - interval '1 second'
            AND NOT EXISTS (SELECT FROM pg_stat_get_activity(pid));
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

-- Waits for those before, and writes all entries that wait, unless another has written that of this
-- backend. Returns of that one what write_board does; null where it was not written, and whoever
-- still wants it is to call again; or the error by which it ended, and the entry is taken back.
CREATE OR REPLACE FUNCTION assistant.write_slot(
    the_agent text, given bigint,
    OUT refused text[], OUT by_another boolean,
    OUT state text, OUT problem text, OUT detail text, OUT hint text
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    by_another := assistant.collect_slot();
    refused := CASE WHEN by_another THEN '{}'
        ELSE assistant.write_with_slots(the_agent, given) END;
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, problem = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    -- One that is locked is being written at the moment.
    DELETE FROM assistant.board_slots WHERE pid IN (
        SELECT pid FROM assistant.board_slots
        WHERE pid = pg_backend_pid() AND NOT written FOR UPDATE SKIP LOCKED);
END
$$;

CREATE OR REPLACE PROCEDURE assistant.put_entry(
    the_agent text, entry jsonb, given bigint, INOUT refused text[]
) LANGUAGE plpgsql AS $$
DECLARE
    ended record;
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
    SELECT * INTO ended FROM assistant.write_slot(the_agent, given);
    refused := ended.refused;
    IF ended.state IS NOT NULL THEN
        COMMIT;
        RAISE USING ERRCODE = ended.state, MESSAGE = ended.problem,
            DETAIL = ended.detail, HINT = ended.hint;
    END IF;
    IF ended.by_another AND current_setting('synchronous_standby_names') <> '' THEN
        COMMIT;
        -- Whoever wrote it may have broken off its wait for the standbys: so this one waits.
        PERFORM pg_logical_emit_message(true, 'assistant', '');
    END IF;
END
$$;
