-- name: since_last_tick
-- A tick has considered what happened only if its model was asked; else `error` tells why not.
WITH considered AS (
    SELECT coalesce((
        SELECT started_at FROM assistant.turns
        WHERE agent = 'heartbeat' AND trigger IN ('timer', 'request')
            AND outcome IN ('done', 'silent') AND error IS NULL
        ORDER BY id DESC LIMIT 1), '-infinity') AS at
)
SELECT
    (SELECT count(*) FROM assistant.messages, considered
        WHERE role = 'user' AND source <> 'schedule' AND created_at > considered.at),
    ARRAY(SELECT agent || coalesce(': ' || detail, '')
        FROM assistant.board_events, considered
        WHERE status = 'failed' AND agent <> 'heartbeat' AND board_events.at > considered.at
        ORDER BY id DESC LIMIT 20);

-- name: is_busy
SELECT EXISTS (
    SELECT FROM assistant.turns JOIN assistant.leases USING (agent, token)
    WHERE trigger = 'message' AND outcome = 'running' AND assistant.lease_lasts(expires_at));
