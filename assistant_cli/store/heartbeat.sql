-- name: last_tick
SELECT value #>> '{}' FROM public.kv WHERE key = 'heartbeat_last_tick_at';

-- name: count_news
SELECT count(*) FROM assistant.messages
WHERE role = 'user' AND (%(since)s::timestamptz IS NULL OR created_at > %(since)s);
