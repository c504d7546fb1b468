-- name: server_version
SELECT current_setting('server_version');

-- name: triggers
SELECT tgname FROM pg_catalog.pg_trigger
WHERE tgrelid = 'public.kv'::regclass AND tgname LIKE 'assistant\_%%' AND tgenabled <> 'D';

-- name: read_only
SELECT current_setting('transaction_read_only') = 'on';

-- name: may_write
SELECT has_table_privilege('public.kv', 'INSERT')
    AND has_table_privilege('public.kv', 'UPDATE')
    AND has_table_privilege('assistant.leases', 'INSERT');

-- name: queue_usage
SELECT pg_notification_queue_usage();
