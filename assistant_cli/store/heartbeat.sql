-- name: last_tick
SELECT value #>> '{}' FROM public.kv WHERE key = 'heartbeat_last_tick_at';

-- name: count_news
SELECT count(*) FROM assistant.messages
WHERE role = 'user' AND source <> 'schedule' AND created_at > coalesce((
    SELECT started_at FROM assistant.turns
    WHERE agent = 'heartbeat' AND trigger = 'timer' AND outcome IN ('done', 'silent')
    ORDER BY id DESC LIMIT 1), '-infinity');

-- name: is_busy
SELECT EXISTS (
    SELECT FROM assistant.turns JOIN assistant.leases USING (agent, token)
    WHERE agent = 'conversation' AND outcome = 'running' AND expires_at > clock_timestamp());
