-- name: one_moment
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- name: agents
SELECT agent, status, detail, since, updated_at, live, stale, host, pid, process, held_since
FROM assistant.agent_status
ORDER BY agent NOT IN ('conversation', 'heartbeat'), agent COLLATE "C";

-- name: inbox
SELECT
    count(*) FILTER (WHERE state = 'waiting') AS waiting,
    count(*) FILTER (WHERE state = 'working') AS working,
    extract(epoch FROM clock_timestamp() - min(created_at))::float8 AS oldest_seconds,
    (SELECT count(*) FROM assistant.messages
        WHERE state = 'failed' AND error IS DISTINCT FROM 'cancelled on request') AS failed,
    clock_timestamp() AS now
FROM assistant.messages WHERE state IN ('waiting', 'working');

-- name: heartbeat
SELECT key, value #>> '{}' AS value FROM public.kv
WHERE key IN ('heartbeat_last_tick_at', 'heartbeat_next_tick_at', 'heartbeat_paused')
    AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: history
SELECT agent, status, detail, at
FROM assistant.board_events
WHERE (%(agents)s::text[] IS NULL OR agent = ANY(%(agents)s))
    AND (%(since)s::interval IS NULL OR at > clock_timestamp() - %(since)s)
ORDER BY id DESC
LIMIT %(limit)s;
