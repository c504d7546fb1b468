-- What an agent said last is known from the board as it was, and need not be looked for among all
-- that it ever said: a page of the index of a talkative agent, each time, was a quarter of the
-- work of a batch of updates. Only of an agent that was not on the board is the last event read.
-- An event that leaves the status as it was therefore no longer repeats since when it has been so:
-- its `since` is null, and the newest that is not null tells it.

CREATE INDEX IF NOT EXISTS board_events_of_status ON assistant.board_events (agent, id)
    WHERE since IS NOT NULL;

CREATE OR REPLACE FUNCTION assistant.record_board() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET enable_seqscan = off SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before jsonb := '{}';
BEGIN
    IF jsonb_typeof(NEW.value) <> 'object' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND jsonb_typeof(OLD.value) = 'object' THEN
        before := OLD.value || '{}';
    END IF;
    INSERT INTO assistant.board_events (agent, status, detail, since)
    SELECT entry.key, entry.value ->> 'status', entry.value ->> 'detail',
        CASE WHEN (entry.value ->> 'status' = last.entry ->> 'status') IS NOT TRUE
            THEN clock_timestamp() END
    FROM jsonb_each(NEW.value) AS entry
    CROSS JOIN LATERAL (
        SELECT coalesce(CASE jsonb_typeof(before -> entry.key)
            WHEN 'object' THEN before -> entry.key END, (
            SELECT jsonb_build_object('status', status, 'detail', detail)
            FROM assistant.board_events
            WHERE agent = ANY (ARRAY[entry.key]) ORDER BY agent DESC, id DESC LIMIT 1
        )) AS entry
        OFFSET 0
    ) AS last
    WHERE jsonb_typeof(entry.value) = 'object'
        AND entry.value IS DISTINCT FROM before -> entry.key
        AND (last.entry IS NULL
            OR entry.value ->> 'status' IS DISTINCT FROM last.entry ->> 'status'
            OR entry.value ->> 'detail' IS DISTINCT FROM last.entry ->> 'detail');
    RETURN NULL;
END
$$;

-- Of a board that was there before its events were recorded, the first of them tells since when
-- its status has been so at least.
CREATE OR REPLACE VIEW assistant.agent_status AS
SELECT
    entry.key AS agent,
    entry.value ->> 'status' AS status,
    entry.value ->> 'detail' AS detail,
    coalesce(last.since, (
        SELECT since FROM assistant.board_events
        WHERE board_events.agent = ANY (ARRAY[entry.key]) AND since IS NOT NULL
        ORDER BY board_events.agent DESC, id DESC LIMIT 1
    ), (
        SELECT at FROM assistant.board_events
        WHERE board_events.agent = ANY (ARRAY[entry.key])
        ORDER BY board_events.agent, id LIMIT 1
    )) AS since,
    last.at AS updated_at,
    coalesce(assistant.lease_lasts(leases.expires_at), false) AS live,
    coalesce(NOT assistant.lease_lasts(leases.expires_at), false) AS stale,
    leases.host,
    leases.pid,
    leases.process,
    leases.acquired_at AS held_since
FROM public.kv
CROSS JOIN LATERAL jsonb_each(
    CASE WHEN jsonb_typeof(kv.value) = 'object' THEN kv.value ELSE '{}' END) AS entry
LEFT JOIN assistant.leases ON leases.agent = entry.key
LEFT JOIN LATERAL (
    SELECT since, at FROM assistant.board_events
    WHERE board_events.agent = ANY (ARRAY[entry.key])
    ORDER BY board_events.agent DESC, id DESC LIMIT 1
) AS last ON true
WHERE kv.key = 'status_board' AND jsonb_typeof(entry.value) = 'object'
    AND (kv.expires_at IS NULL OR kv.expires_at > clock_timestamp());

-- Called by programs from before write_board; it writes what they ask for in the same way.
CREATE OR REPLACE FUNCTION assistant.update_board(updates jsonb) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    rounds jsonb;
    tokens jsonb;
BEGIN
    SELECT coalesce(jsonb_agg(entries ORDER BY number), '[]') INTO rounds
    FROM (
        SELECT number, jsonb_object_agg(agent, entry) AS entries
        FROM (
            SELECT said ->> 'agent' AS agent,
                jsonb_build_object('status', said -> 'status', 'detail', said -> 'detail') AS entry,
                row_number() OVER (PARTITION BY said ->> 'agent' ORDER BY place) AS number
            FROM jsonb_array_elements(updates) WITH ORDINALITY AS each (said, place)
        ) AS numbered
        GROUP BY number
    ) AS round;
    SELECT coalesce(jsonb_object_agg(said ->> 'agent', said -> 'token'), '{}') INTO tokens
    FROM jsonb_array_elements(updates) AS each (said) WHERE said ->> 'token' IS NOT NULL;
    RETURN assistant.write_board(rounds, tokens);
END
$$;
DROP FUNCTION IF EXISTS assistant.record_transition(text, jsonb);

-- Last, since nobody can read the events from here to the end.
ALTER TABLE assistant.board_events ALTER COLUMN since DROP NOT NULL;
