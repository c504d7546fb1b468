-- name: update
SELECT assistant.update_board(%(updates)s::jsonb);

-- name: read
SELECT value::text FROM public.kv
WHERE key = 'status_board' AND (expires_at IS NULL OR expires_at > clock_timestamp());
