-- name: get
SELECT key, value::text AS text, revision, updated_at, expires_at
FROM public.kv
WHERE key = %(key)s AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: get_pretty
SELECT jsonb_pretty(value) AS text
FROM public.kv
WHERE key = %(key)s AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: get_path
SELECT found::text AS text, jsonb_pretty(found) AS pretty
FROM public.kv CROSS JOIN LATERAL jsonb_path_query(value, %(path)s::jsonpath, '{}', true) AS found
WHERE key = %(key)s AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: set
INSERT INTO public.kv (key, value, expires_at)
SELECT entry ->> 'key', entry -> 'value',
    clock_timestamp() + (entry ->> 'ttl')::float8 * interval '1 second'
FROM jsonb_array_elements(%(writes)s::jsonb) AS entry
ORDER BY entry ->> 'key' COLLATE "C"
ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at
RETURNING key, revision;

-- name: create
INSERT INTO public.kv (key, value, expires_at)
VALUES (
    %(key)s,
    CASE WHEN %(merge)s
        THEN assistant.merge_patch('{}', %(value)s::jsonb) ELSE %(value)s::jsonb END,
    clock_timestamp() + %(ttl)s)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at
WHERE kv.expires_at <= clock_timestamp()
RETURNING revision, CASE WHEN %(merge)s THEN value::text END;

-- name: merge
INSERT INTO public.kv (key, value, expires_at)
VALUES (
    %(key)s, assistant.merge_patch('{}', %(value)s::jsonb), clock_timestamp() + %(ttl)s)
ON CONFLICT (key) DO UPDATE SET
    value = assistant.merge_patch(
        CASE WHEN kv.expires_at <= clock_timestamp() THEN '{}' ELSE kv.value END,
        %(value)s::jsonb),
    expires_at = coalesce(excluded.expires_at, kv.expires_at)
RETURNING revision, value::text;

-- name: replace_at_revision
UPDATE public.kv SET
    value = CASE WHEN %(merge)s
        THEN assistant.merge_patch(value, %(value)s::jsonb) ELSE %(value)s::jsonb END,
    expires_at = CASE WHEN %(merge)s
        THEN coalesce(clock_timestamp() + %(ttl)s, expires_at) ELSE clock_timestamp() + %(ttl)s END
WHERE key = %(key)s AND revision = %(revision)s
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
RETURNING revision, CASE WHEN %(merge)s THEN value::text END;

-- name: increment
INSERT INTO public.kv AS kv (key, value)
VALUES (%(key)s, to_jsonb(%(by)s::numeric))
ON CONFLICT (key) DO UPDATE SET value = CASE
    WHEN kv.expires_at <= clock_timestamp() THEN excluded.value
    ELSE to_jsonb((kv.value #>> '{}')::numeric + %(by)s::numeric) END
WHERE jsonb_typeof(kv.value) = 'number' OR kv.expires_at <= clock_timestamp()
RETURNING value::text;

-- name: delete
-- Locked in the same order as keys that are set together, or the two could deadlock.
WITH locked AS (
    SELECT key FROM public.kv WHERE key = ANY(%(keys)s) ORDER BY key COLLATE "C" FOR UPDATE
)
DELETE FROM public.kv USING locked WHERE kv.key = locked.key
RETURNING CASE WHEN expires_at <= clock_timestamp() THEN NULL ELSE kv.key END AS key;

-- name: list
SELECT key, value::text AS text, revision, updated_at, expires_at
FROM public.kv
WHERE key COLLATE "C" >= %(start)s
    AND key COLLATE "C" < %(end)s
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
ORDER BY key COLLATE "C"
LIMIT %(limit)s;

-- name: list_keys
SELECT key
FROM public.kv
WHERE key COLLATE "C" >= %(start)s
    AND key COLLATE "C" < %(end)s
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
ORDER BY key COLLATE "C"
LIMIT %(limit)s;
