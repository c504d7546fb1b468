-- name: revision
SELECT key, revision
FROM public.kv
WHERE key = %(key)s AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: revisions
SELECT key, revision
FROM public.kv
WHERE key COLLATE "C" >= %(start)s
    AND key COLLATE "C" < %(end)s
    AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: entries
SELECT key, value::text AS text, revision, updated_at, expires_at
FROM public.kv
WHERE key = ANY(%(keys)s) AND (expires_at IS NULL OR expires_at > clock_timestamp())
ORDER BY key COLLATE "C";
