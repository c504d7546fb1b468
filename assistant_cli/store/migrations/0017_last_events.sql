-- The last event of an agent is found in the same time however long the timeline is, also of one
-- that has said nothing for long, or never. With `agent = …`, whose value is not known when it is
-- planned, all events were read backwards until one was the agent's, where few agents have many.
-- `= ANY` of one agent leaves but the index of agents to give the order.

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
        CASE WHEN entry.value ->> 'status' = last.status THEN last.since
            ELSE clock_timestamp() END
    FROM jsonb_each(NEW.value) AS entry
    LEFT JOIN LATERAL (
        SELECT id, status, detail, since FROM assistant.board_events
        WHERE agent = ANY (ARRAY[entry.key]) ORDER BY agent DESC, id DESC LIMIT 1
    ) AS last ON true
    WHERE jsonb_typeof(entry.value) = 'object'
        AND entry.value IS DISTINCT FROM before -> entry.key
        AND (last.id IS NULL OR entry.value ->> 'status' IS DISTINCT FROM last.status
            OR entry.value ->> 'detail' IS DISTINCT FROM last.detail);
    RETURN NULL;
END
$$;

CREATE OR REPLACE VIEW assistant.agent_status AS
SELECT
    entry.key AS agent,
    entry.value ->> 'status' AS status,
    entry.value ->> 'detail' AS detail,
    last.since,
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
