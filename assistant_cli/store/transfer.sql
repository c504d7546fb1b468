-- name: export
-- CSV with a delimiter and a quote that JSON text cannot contain comes out unescaped.
COPY (
    SELECT to_json(key), value
    FROM public.kv
    WHERE key COLLATE "C" >= %(start)s
        AND key COLLATE "C" < %(end)s
        AND (expires_at IS NULL OR expires_at > clock_timestamp())
    ORDER BY key COLLATE "C"
) TO STDOUT (FORMAT csv, DELIMITER E'\x02', QUOTE E'\x01');

-- name: create_incoming
CREATE TEMPORARY TABLE incoming (
    line bigint GENERATED ALWAYS AS IDENTITY, entry jsonb NOT NULL
) ON COMMIT DROP;

-- name: copy_incoming
COPY incoming (entry) FROM STDIN (FORMAT csv, DELIMITER E'\x02', QUOTE E'\x01');

-- name: store_replacing
INSERT INTO public.kv (key, value)
SELECT DISTINCT ON (entry ->> 'key' COLLATE "C") entry ->> 'key', entry -> 'value'
FROM incoming ORDER BY entry ->> 'key' COLLATE "C", line DESC
ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = NULL;

-- name: store_skipping
INSERT INTO public.kv (key, value)
SELECT DISTINCT ON (entry ->> 'key' COLLATE "C") entry ->> 'key', entry -> 'value'
FROM incoming ORDER BY entry ->> 'key' COLLATE "C", line
ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = NULL
WHERE kv.expires_at <= clock_timestamp();

-- name: find_conflict
SELECT given.key, given.lines > 1 AS comes_twice
FROM (SELECT entry ->> 'key' AS key, count(*) AS lines FROM incoming GROUP BY 1) AS given
LEFT JOIN public.kv USING (key)
WHERE given.lines > 1
    OR (kv.key IS NOT NULL AND (expires_at IS NULL OR expires_at > clock_timestamp()))
LIMIT 1;
