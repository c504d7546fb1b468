-- Roles for a database that several people and programs share; its owner, who migrates, runs this
-- after `assistant db migrate`: psql -v ON_ERROR_STOP=1 -f infra/roles.sql. It can run again.
-- Then: GRANT assistant_runtime TO somebody.
-- A watch, as `status --watch`, keeps a connection. What one user may keep is limited by
-- ALTER ROLE somebody CONNECTION LIMIT 20; a `run` takes a dozen at most.
--
--   assistant_reader   status, history, turns, kv get and watch: what only looks
--   assistant_runtime  run, send, kv set, schedule, report: rows, but no tables
--
-- The owner of the schema alone migrates. The sender of a message is the user of its session,
-- whatever a writer says.

SET client_min_messages = warning;

-- Roles are the server's: where another database has brought them, its owner need not make any.
DO $$
BEGIN
    IF to_regrole('assistant_reader') IS NULL THEN
        CREATE ROLE assistant_reader NOLOGIN;
    END IF;
    IF to_regrole('assistant_runtime') IS NULL THEN
        CREATE ROLE assistant_runtime NOLOGIN;
    END IF;
    IF NOT pg_has_role('assistant_runtime', 'assistant_reader', 'MEMBER') THEN
        GRANT assistant_reader TO assistant_runtime;
    END IF;
END
$$;

GRANT USAGE ON SCHEMA public, assistant TO assistant_reader;
GRANT SELECT ON public.kv TO assistant_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA assistant TO assistant_reader;
GRANT INSERT, UPDATE, DELETE ON public.kv TO assistant_runtime;
GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA assistant TO assistant_runtime;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA assistant TO assistant_runtime;
REVOKE INSERT, UPDATE, DELETE ON assistant.migrations FROM assistant_runtime;

-- What a later version adds is open to the same roles.
ALTER DEFAULT PRIVILEGES IN SCHEMA assistant GRANT SELECT ON TABLES TO assistant_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA assistant
    GRANT INSERT, UPDATE, DELETE ON TABLES TO assistant_runtime;
ALTER DEFAULT PRIVILEGES IN SCHEMA assistant GRANT USAGE ON SEQUENCES TO assistant_runtime;
