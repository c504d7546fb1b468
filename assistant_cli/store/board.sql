-- name: update
SELECT assistant.write_board(%(rounds)s::jsonb, %(tokens)s::jsonb);

-- name: update_one
CALL assistant.put_entry(%(agent)s, %(entry)s::jsonb, %(token)s::bigint, NULL::text[]);

-- name: read
SELECT value::text FROM public.kv
WHERE key = 'status_board' AND (expires_at IS NULL OR expires_at > clock_timestamp());
