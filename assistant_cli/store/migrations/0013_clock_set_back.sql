-- Whether a lease that ends at a time still lasts. One that ends later than any lease may was given
-- before the clock of the server was set back: its holder renews it within seconds, if it lives.
CREATE OR REPLACE FUNCTION assistant.lease_lasts(until timestamptz) RETURNS boolean
LANGUAGE sql VOLATILE
RETURN until > clock_timestamp() AND until <= clock_timestamp() + interval '1 minute';

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
    WHERE board_events.agent = entry.key ORDER BY id DESC LIMIT 1
) AS last ON true
WHERE kv.key = 'status_board' AND jsonb_typeof(entry.value) = 'object'
    AND (kv.expires_at IS NULL OR kv.expires_at > clock_timestamp());
