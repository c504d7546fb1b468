-- Every statement can run again without harm: the same text serves `psql -f` on a database
-- that is new, already adopted, or holds another program's plain kv table.

CREATE SCHEMA IF NOT EXISTS assistant;

CREATE TABLE IF NOT EXISTS assistant.migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE SEQUENCE IF NOT EXISTS assistant.revisions;
CREATE SEQUENCE IF NOT EXISTS assistant.tokens;

-- kv: one JSON value a key. Plain SQL is a first-class writer: triggers keep the extra columns.

CREATE TABLE IF NOT EXISTS public.kv (
    key text PRIMARY KEY,
    value jsonb NOT NULL
);

DO $$
DECLARE
    needed name;
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'this database is in %, which does not hold all text; create one with '
            'ENCODING ''UTF8'' TEMPLATE template0', current_setting('server_encoding')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF (SELECT data_type FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name = 'kv' AND column_name = 'value')
        IS DISTINCT FROM 'jsonb' THEN
        RAISE EXCEPTION 'public.kv is another table: its column "value" is not jsonb'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid
            AND attname = 'key' AND attnum = indkey[0]
        WHERE indrelid = 'public.kv'::regclass AND indisunique AND indnkeyatts = 1
            AND indimmediate AND indpred IS NULL) THEN
        RAISE EXCEPTION 'public.kv is another table: its column "key" is not unique'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    SELECT attname INTO needed FROM pg_attribute
    WHERE attrelid = 'public.kv'::regclass AND attnum > 0 AND NOT attisdropped AND attnotnull
        AND NOT atthasdef AND attidentity = '' AND attname NOT IN ('key', 'value');
    IF FOUND THEN
        RAISE EXCEPTION 'public.kv is another table: its column "%" must be given', needed
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;

-- revision grows with every write of any key; updated_at is the time of the last write;
-- a key whose expires_at has passed counts as missing and is deleted in time.
ALTER TABLE public.kv ADD COLUMN IF NOT EXISTS revision bigint NOT NULL DEFAULT 0;
ALTER TABLE public.kv ADD COLUMN IF NOT EXISTS updated_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE public.kv ADD COLUMN IF NOT EXISTS expires_at timestamptz;
-- Where the table was this program's before, its revisions go on from there.
DO $$
DECLARE
    latest bigint;
BEGIN
    SELECT max(revision) INTO latest FROM public.kv;
    IF latest > (SELECT last_value FROM assistant.revisions) THEN
        PERFORM setval('assistant.revisions', latest);
    END IF;
END
$$;
UPDATE public.kv SET revision = nextval('assistant.revisions') WHERE revision = 0;

CREATE INDEX IF NOT EXISTS kv_key_order ON public.kv (key COLLATE "C");
CREATE INDEX IF NOT EXISTS kv_expiry ON public.kv (expires_at) WHERE expires_at IS NOT NULL;

-- SECURITY DEFINER, so that a program that may only write kv need not be granted our schema.
CREATE OR REPLACE FUNCTION assistant.stamp_kv() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.revision := nextval('assistant.revisions');
    NEW.updated_at := clock_timestamp();
    -- A plain upsert of an expired key brings it back; it must not stay invisible.
    IF TG_OP = 'UPDATE' AND NEW.expires_at = OLD.expires_at
        AND NEW.expires_at <= NEW.updated_at THEN
        NEW.expires_at := NULL;
    END IF;
    RETURN NEW;
END
$$;

-- The payload of a notification is the key that changed, or empty where any may have:
-- a hint to look again, never data.
CREATE OR REPLACE FUNCTION assistant.notify_kv() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT count(*) FROM (SELECT 1 FROM changed LIMIT 101) AS few) > 100 THEN
        PERFORM pg_notify('assistant_kv', '');
    ELSE
        PERFORM pg_notify(
            'assistant_kv', CASE WHEN octet_length(key) <= 512 THEN key ELSE '' END)
        FROM changed;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION assistant.notify_kv_everything() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('assistant_kv', '');
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER assistant_stamp BEFORE INSERT OR UPDATE ON public.kv
    FOR EACH ROW EXECUTE FUNCTION assistant.stamp_kv();
CREATE OR REPLACE TRIGGER assistant_notify_insert AFTER INSERT ON public.kv
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION assistant.notify_kv();
CREATE OR REPLACE TRIGGER assistant_notify_update AFTER UPDATE ON public.kv
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION assistant.notify_kv();
CREATE OR REPLACE TRIGGER assistant_notify_delete AFTER DELETE ON public.kv
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION assistant.notify_kv();
CREATE OR REPLACE TRIGGER assistant_notify_rename AFTER UPDATE ON public.kv
    FOR EACH ROW WHEN (OLD.key IS DISTINCT FROM NEW.key)
    EXECUTE FUNCTION assistant.notify_kv_everything();
CREATE OR REPLACE TRIGGER assistant_notify_truncate AFTER TRUNCATE ON public.kv
    FOR EACH STATEMENT EXECUTE FUNCTION assistant.notify_kv_everything();

-- JSON Merge Patch, RFC 7396.
CREATE OR REPLACE FUNCTION assistant.merge_patch(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
    change jsonb;
BEGIN
    IF jsonb_typeof(patch) <> 'object' THEN
        RETURN patch;
    END IF;
    IF target IS NULL OR jsonb_typeof(target) <> 'object' THEN
        target := '{}';
    END IF;
    FOR name, change IN SELECT * FROM jsonb_each(patch) LOOP
        IF jsonb_typeof(change) = 'null' THEN
            target := target - name;
        ELSE
            target := target || jsonb_build_object(
                name, assistant.merge_patch(target -> name, change));
        END IF;
    END LOOP;
    RETURN target;
END
$$;

-- leases: who holds an agent. The token is part of a unique key on purpose: a writer locks its
-- lease FOR KEY SHARE, which a take-over (new token) waits for and a renewal does not.

CREATE TABLE IF NOT EXISTS assistant.leases (
    agent text PRIMARY KEY,
    token bigint NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    process text NOT NULL,
    acquired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    UNIQUE (agent, token)
) WITH (fillfactor = 50);

-- turns: every execution of an agent, what triggered it and how it ended.

CREATE TABLE IF NOT EXISTS assistant.turns (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agent text NOT NULL,
    trigger text NOT NULL,
    conversation text,
    token bigint NOT NULL,
    model text NOT NULL,
    outcome text NOT NULL DEFAULT 'running' CHECK (outcome IN
        ('running', 'done', 'silent', 'skipped', 'failed', 'timed_out', 'interrupted')),
    error text,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz
);
CREATE INDEX IF NOT EXISTS turns_open ON assistant.turns (agent) WHERE outcome = 'running';
CREATE INDEX IF NOT EXISTS turns_of_agent ON assistant.turns (agent, id);

-- messages: what somebody or an agent said. One that came in is waiting, then working, then
-- answered by reply_id, or failed after its last attempt; it is never dropped.

CREATE TABLE IF NOT EXISTS assistant.messages (
    id uuid PRIMARY KEY,
    position bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    conversation text NOT NULL,
    role text NOT NULL CHECK (role IN ('user', 'assistant')),
    content text NOT NULL,
    sender text NOT NULL DEFAULT session_user,
    source text NOT NULL,
    external_id text,
    state text NOT NULL CHECK (state IN ('waiting', 'working', 'answered', 'failed', 'said')),
    attempts integer NOT NULL DEFAULT 0,
    retry_at timestamptz,
    turn_id bigint REFERENCES assistant.turns (id),
    reply_id uuid REFERENCES assistant.messages (id),
    error text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    answered_at timestamptz,
    reported_at timestamptz,
    UNIQUE (source, external_id)
);
CREATE INDEX IF NOT EXISTS messages_of_conversation
    ON assistant.messages (conversation, position);
CREATE INDEX IF NOT EXISTS messages_open
    ON assistant.messages (position) WHERE state IN ('waiting', 'working');
CREATE INDEX IF NOT EXISTS messages_failed
    ON assistant.messages (position) WHERE state = 'failed';

-- When each waiting message may be tried: not before those before it in its conversation, but
-- commands to the assistant itself need not wait for a model that is being tried again.
CREATE OR REPLACE VIEW assistant.waiting_messages AS
SELECT id, conversation, position,
    CASE WHEN retry_at IS NULL AND content ~ '^\s*/[a-z]+(\s|$)' THEN '-infinity'
        ELSE coalesce(
            first_value(retry_at) OVER (PARTITION BY conversation ORDER BY position), '-infinity')
    END AS ready_at
FROM assistant.messages WHERE state = 'waiting';

-- schedules: what is to be said at a time.

CREATE TABLE IF NOT EXISTS assistant.schedules (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation text NOT NULL,
    content text NOT NULL,
    due_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    fired_at timestamptz,
    message_id uuid REFERENCES assistant.messages (id)
);
CREATE INDEX IF NOT EXISTS schedules_due ON assistant.schedules (due_at) WHERE fired_at IS NULL;

-- board_events: every transition of an agent. `since` is when its status, whatever the detail,
-- began. The newest row of an agent is always what the board says of it.

CREATE TABLE IF NOT EXISTS assistant.board_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agent text NOT NULL,
    status text,
    detail text,
    since timestamptz NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS board_events_of_agent ON assistant.board_events (agent, id);

-- Appends an agent's entry if it says something new.
CREATE OR REPLACE FUNCTION assistant.record_transition(the_agent text, entry jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    the_status text := entry ->> 'status';
    the_detail text := entry ->> 'detail';
    last assistant.board_events;
BEGIN
    SELECT * INTO last FROM assistant.board_events
    WHERE agent = the_agent ORDER BY id DESC LIMIT 1;
    IF last.id IS NULL OR the_status IS DISTINCT FROM last.status
        OR the_detail IS DISTINCT FROM last.detail THEN
        INSERT INTO assistant.board_events (agent, status, detail, since)
        VALUES (the_agent, the_status, the_detail,
            CASE WHEN the_status = last.status THEN last.since ELSE clock_timestamp() END);
    END IF;
END
$$;

-- Whoever writes the board, with plain SQL too, has its transitions recorded.
CREATE OR REPLACE FUNCTION assistant.record_board() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before jsonb := '{}';
BEGIN
    IF jsonb_typeof(NEW.value) <> 'object' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND jsonb_typeof(OLD.value) = 'object' THEN
        before := OLD.value;
    END IF;
    PERFORM assistant.record_transition(entry.key, entry.value)
    FROM jsonb_each(NEW.value) AS entry
    WHERE jsonb_typeof(entry.value) = 'object'
        AND entry.value IS DISTINCT FROM before -> entry.key;
    RETURN NULL;
END
$$;

-- Puts updates on the board, in their order, all or none: an array of objects with agent,
-- status, detail and token. An agent that is held accepts only its holder's token, and only
-- while the lease lasts; a token of null speaks for an agent that nobody holds. All updates of
-- one agent carry the same token.
-- Returns the agents whose update was refused; where there is one, nothing was written.
CREATE OR REPLACE FUNCTION assistant.update_board(updates jsonb) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    said jsonb;
    entry jsonb;
    entries jsonb := '{}';
    tokens jsonb := '{}';
    repeated boolean := false;
    refused text[] := '{}';
    name text;
    token bigint;
    held record;
BEGIN
    FOR place IN 0 .. jsonb_array_length(updates) - 1 LOOP
        said := updates -> place;
        name := said ->> 'agent';
        repeated := repeated OR entries ? name;
        entry := jsonb_build_object('status', said -> 'status', 'detail', said -> 'detail');
        entries := entries || jsonb_build_object(name, entry);
        tokens := tokens || jsonb_build_object(name, said -> 'token');
    END LOOP;
    -- In one order for all, so that a batch and a take-over never wait for each other.
    FOR name IN SELECT jsonb_object_keys(tokens) ORDER BY 1 LOOP
        SELECT leases.token, leases.expires_at > clock_timestamp() AS live INTO held
        FROM assistant.leases WHERE leases.agent = name FOR KEY SHARE;
        token := tokens ->> name;
        IF (token IS NULL AND held.live)
            OR (token IS NOT NULL AND (held.live AND held.token = token) IS NOT TRUE) THEN
            refused := refused || name;
        END IF;
    END LOOP;
    IF cardinality(refused) > 0 THEN
        RETURN refused;
    END IF;
    IF repeated THEN
        -- The trigger will see the last entry of each agent only.
        FOR place IN 0 .. jsonb_array_length(updates) - 1 LOOP
            said := updates -> place;
            PERFORM assistant.record_transition(said ->> 'agent', said);
        END LOOP;
    END IF;
    UPDATE public.kv SET expires_at = NULL, value =
        CASE WHEN jsonb_typeof(value) = 'object' THEN value ELSE '{}' END || entries
    WHERE key = 'status_board';
    IF NOT FOUND THEN
        INSERT INTO public.kv AS board (key, value) VALUES ('status_board', entries)
        ON CONFLICT (key) DO UPDATE SET expires_at = NULL, value =
            CASE WHEN jsonb_typeof(board.value) = 'object' THEN board.value ELSE '{}' END
            || excluded.value;
    END IF;
    RETURN refused;
END
$$;

CREATE OR REPLACE TRIGGER assistant_record_board_insert AFTER INSERT ON public.kv
    FOR EACH ROW WHEN (NEW.key = 'status_board') EXECUTE FUNCTION assistant.record_board();
CREATE OR REPLACE TRIGGER assistant_record_board_update AFTER UPDATE ON public.kv
    FOR EACH ROW WHEN (NEW.key = 'status_board') EXECUTE FUNCTION assistant.record_board();

-- agent_status: one row an agent for any tool. live: its holder renewed in time; stale: its
-- holder is gone without saying so; neither: nobody holds it.
CREATE OR REPLACE VIEW assistant.agent_status AS
SELECT
    entry.key AS agent,
    entry.value ->> 'status' AS status,
    entry.value ->> 'detail' AS detail,
    last.since,
    last.at AS updated_at,
    coalesce(leases.expires_at > clock_timestamp(), false) AS live,
    coalesce(leases.expires_at <= clock_timestamp(), false) AS stale,
    leases.host,
    leases.pid,
    leases.process,
    leases.acquired_at AS held_since
FROM public.kv
CROSS JOIN LATERAL jsonb_each(
    CASE WHEN jsonb_typeof(kv.value) = 'object' THEN kv.value ELSE '{}' END) AS entry
LEFT JOIN assistant.leases ON leases.agent = entry.key
LEFT JOIN LATERAL (
    SELECT since, at FROM assistant.board_events
    WHERE board_events.agent = entry.key ORDER BY id DESC LIMIT 1
) AS last ON true
WHERE kv.key = 'status_board' AND jsonb_typeof(entry.value) = 'object'
    AND (kv.expires_at IS NULL OR kv.expires_at > clock_timestamp());
