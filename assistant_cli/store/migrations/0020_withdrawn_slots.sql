-- Who gives up waiting for another's commit takes back the entry that waits: it was written along
-- by whoever updated the board within the next 20 seconds, after what was newer.

-- Waits for those before, and writes all entries that wait, unless another has written that of this
-- backend. Returns of that one what write_board does; null where it was not written, and whoever
-- still wants it is to call again; or the error by which it ended, and the entry is taken back.
CREATE OR REPLACE FUNCTION assistant.write_slot(
    the_agent text, given bigint,
    OUT refused text[], OUT by_another boolean, OUT state text, OUT problem text
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    by_another := assistant.collect_slot();
    refused := CASE WHEN by_another THEN '{}'
        ELSE assistant.write_with_slots(the_agent, given) END;
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, problem = MESSAGE_TEXT;
    DELETE FROM assistant.board_slots WHERE pid = pg_backend_pid() AND NOT written;
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
        RAISE USING ERRCODE = ended.state, MESSAGE = ended.problem;
    END IF;
    IF ended.by_another AND current_setting('synchronous_standby_names') <> '' THEN
        COMMIT;
        -- Whoever wrote it may have broken off its wait for the standbys: so this one waits.
        PERFORM pg_logical_emit_message(true, 'assistant', '');
    END IF;
END
$$;
