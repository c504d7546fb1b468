-- name: server_version
SELECT current_setting('server_version');

-- name: triggers
SELECT tgname FROM pg_catalog.pg_trigger
WHERE tgrelid = 'public.kv'::regclass AND tgname LIKE 'assistant\_%%' AND tgenabled <> 'D';

-- name: queue_usage
SELECT pg_notification_queue_usage();

-- name: holders
SELECT agent, token, host, pid, process, acquired_at, expires_at > clock_timestamp() AS live
FROM assistant.leases ORDER BY agent;
