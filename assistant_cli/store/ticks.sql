-- name: now
SELECT clock_timestamp();

-- name: text
SELECT value #>> '{}' FROM public.kv
WHERE key = %(key)s AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: last_tick
SELECT id FROM assistant.turns
WHERE agent = %(agent)s AND trigger IN ('timer', 'request') AND outcome <> 'running'
ORDER BY id DESC LIMIT 1;

-- name: requested_tick
SELECT id FROM assistant.turns
WHERE agent = %(agent)s AND trigger = 'request' AND outcome <> 'running'
    AND started_at >= %(since)s
ORDER BY id LIMIT 1;

-- name: delete
DELETE FROM public.kv
WHERE key = %(key)s AND (expires_at IS NULL OR expires_at > clock_timestamp());
