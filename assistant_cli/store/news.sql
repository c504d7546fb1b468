-- name: news
SELECT EXISTS (SELECT FROM assistant.messages WHERE state = 'waiting') AS waiting,
    (SELECT min(coalesce(retry_at, due_at)) FROM assistant.schedules
        WHERE state = 'active') AS next_due,
    (SELECT max(updated_at) FROM public.kv
        WHERE key COLLATE "C" >= 'tick_requests/' AND key COLLATE "C" < 'tick_requests0'
    ) AS last_request,
    EXISTS (SELECT FROM assistant.orphaned_turns WHERE token <> %(token)s) AS orphaned;
