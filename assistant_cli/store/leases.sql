-- name: acquire
INSERT INTO assistant.leases (agent, token, host, pid, process, expires_at)
SELECT agent, (SELECT nextval('assistant.tokens')), %(host)s, %(pid)s, %(process)s,
    clock_timestamp() + %(duration)s
FROM unnest(%(agents)s::text[]) AS agent
ORDER BY agent
ON CONFLICT (agent) DO UPDATE SET
    token = excluded.token, host = excluded.host, pid = excluded.pid, process = excluded.process,
    acquired_at = clock_timestamp(), expires_at = excluded.expires_at
WHERE NOT assistant.lease_lasts(leases.expires_at) OR leases.token = ANY(%(dead)s::bigint[])
RETURNING token;

-- name: held
SELECT agent, token, host, pid, process, acquired_at, assistant.lease_lasts(expires_at) AS live
FROM assistant.leases
WHERE %(agents)s::text[] IS NULL OR agent = ANY(%(agents)s)
ORDER BY agent;

-- name: renew
UPDATE assistant.leases SET expires_at = clock_timestamp() + %(duration)s
WHERE token = %(token)s AND agent = ANY(%(agents)s);

-- name: release
DELETE FROM assistant.leases WHERE token = %(token)s AND agent = ANY(%(agents)s) RETURNING agent;

-- name: interrupt_open
-- Not the turns that answer messages: whoever gives their messages back closes them.
UPDATE assistant.turns
SET outcome = 'interrupted', ended_at = clock_timestamp(),
    error = 'the process that ran it ended'
WHERE agent = ANY(%(agents)s) AND token = %(token)s AND outcome = 'running'
    AND trigger <> 'message';

-- name: show_idle
SELECT assistant.write_board(jsonb_build_array(
    jsonb_object_agg(entry.key, '{"status": "idle", "detail": null}'::jsonb)), '{}')
FROM public.kv CROSS JOIN LATERAL jsonb_each(
    CASE WHEN jsonb_typeof(value) = 'object' THEN value ELSE '{}' END) AS entry
WHERE kv.key = 'status_board' AND entry.key = ANY(%(agents)s)
    AND entry.value -> 'status' = '"running"'
HAVING count(*) > 0;

-- name: forget_expired
DELETE FROM assistant.leases
WHERE agent = %(agent)s
    AND (NOT assistant.lease_lasts(expires_at) OR token = ANY(%(dead)s::bigint[]));

-- name: announce
SELECT pg_notify('assistant_leases', '');

-- name: guard_alone
SELECT token = %(token)s AS ours, expires_at > clock_timestamp() AS live
FROM assistant.leases WHERE agent = %(agent)s
FOR UPDATE;

-- name: guard
SELECT token = %(token)s AS ours, expires_at > clock_timestamp() AS live
FROM assistant.leases WHERE agent = %(agent)s
FOR KEY SHARE;
