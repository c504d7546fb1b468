-- The whole schema of the assistant, for readers, for `psql -f` and for docker-compose; the steps
-- that lead a database of an older version here are in assistant_cli/store/migrations.
-- It can run again on a database that has it. Programs that write at that moment may have to write
-- again, and so may this have to run again: it is one transaction.

BEGIN;
SET LOCAL client_min_messages = warning;
-- One at a time, as migrations are.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(7238114905); END $$;

CREATE SCHEMA IF NOT EXISTS assistant;

CREATE TABLE IF NOT EXISTS assistant.migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

DO $$
DECLARE
    found integer := (SELECT max(version) FROM assistant.migrations);
BEGIN
    IF found <> 21 THEN
        RAISE EXCEPTION 'this database is at version %, and this script at 21', found
            USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'An older database is led to it by `assistant db migrate`.';
    END IF;
END
$$;

INSERT INTO assistant.migrations (version, name) VALUES
    (1, 'initial'),
    (2, 'turn_steps'),
    (3, 'schedules'),
    (4, 'spend'),
    (5, 'senders'),
    (6, 'rising_revisions'),
    (7, 'less_work'),
    (8, 'retention'),
    (9, 'several_conversations'),
    (10, 'queue_limit'),
    (11, 'trigger_rights'),
    (12, 'cheaper_writes'),
    (13, 'clock_set_back'),
    (14, 'one_commit'),
    (15, 'shared_commits'),
    (16, 'waiting_slots'),
    (17, 'last_events'),
    (18, 'known_entries'),
    (19, 'leftovers'),
    (20, 'withdrawn_slots'),
    (21, 'sent_apart')
ON CONFLICT DO NOTHING;

-- kv: one JSON value a key. Plain SQL is a first-class writer: triggers keep the extra columns. A
-- table that another program made is adopted with its values.

CREATE SEQUENCE IF NOT EXISTS assistant.revisions;

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
-- An insert has its revision before it meets whoever writes the key at the same time. Where that
-- one deleted it in the end, the key came back with a smaller revision than it had been seen with.
CREATE OR REPLACE FUNCTION assistant.stamp_kv() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
-- A plan made while the table was small must not be kept when it is large.
SET enable_seqscan = off SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Those who write the key now go first.
    PERFORM 1 FROM public.kv WHERE key = NEW.key FOR NO KEY UPDATE;
    NEW.revision := nextval('assistant.revisions');
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION assistant.stamp_kv_again() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.revision := nextval('assistant.revisions');
    NEW.updated_at := clock_timestamp();
    -- A plain upsert of an expired key brings it back; it must not stay invisible.
    IF NEW.expires_at = OLD.expires_at AND NEW.expires_at <= NEW.updated_at THEN
        NEW.expires_at := NULL;
    END IF;
    IF NEW.key <> OLD.key THEN
        PERFORM pg_notify('assistant_kv', '');
    END IF;
    RETURN NEW;
END
$$;

-- The payload of a notification is the key that changed, or empty where any may have:
-- a hint to look again, never data. Of the writer's own rights: whoever may write kv may notify.
CREATE OR REPLACE FUNCTION assistant.notify_kv() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    keys text[];
BEGIN
    SELECT array_agg(few.key) INTO keys FROM (SELECT key FROM changed LIMIT 101) AS few;
    IF cardinality(keys) > 100 THEN
        keys := '{""}';
    END IF;
    -- Equal notifications of a transaction are one.
    FOR place IN 1 .. coalesce(cardinality(keys), 0) LOOP
        PERFORM pg_notify('assistant_kv',
            CASE WHEN octet_length(keys[place]) > 512 THEN '' ELSE keys[place] END);
    END LOOP;
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

CREATE OR REPLACE TRIGGER assistant_stamp BEFORE INSERT ON public.kv
    FOR EACH ROW EXECUTE FUNCTION assistant.stamp_kv();
CREATE OR REPLACE TRIGGER assistant_stamp_again BEFORE UPDATE ON public.kv
    FOR EACH ROW EXECUTE FUNCTION assistant.stamp_kv_again();
CREATE OR REPLACE TRIGGER assistant_notify_insert AFTER INSERT ON public.kv
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION assistant.notify_kv();
CREATE OR REPLACE TRIGGER assistant_notify_update AFTER UPDATE ON public.kv
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION assistant.notify_kv();
CREATE OR REPLACE TRIGGER assistant_notify_delete AFTER DELETE ON public.kv
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION assistant.notify_kv();
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

CREATE SEQUENCE IF NOT EXISTS assistant.tokens;

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

-- Whether a lease that ends at a time still lasts. One that ends later than any lease may was given
-- before the clock of the server was set back: its holder renews it within seconds, if it lives.
CREATE OR REPLACE FUNCTION assistant.lease_lasts(until timestamptz) RETURNS boolean
LANGUAGE sql VOLATILE
RETURN until > clock_timestamp() AND until <= clock_timestamp() + interval '1 minute';

-- turns: every execution of an agent, what triggered it, how it ended and what it cost.
-- cancelled_at: somebody asked for it to be ended; its agent does so.
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
    ended_at timestamptz,
    requests integer NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cost_usd numeric,
    cancelled_at timestamptz
);

CREATE INDEX IF NOT EXISTS turns_open ON assistant.turns (agent) WHERE outcome = 'running';
CREATE INDEX IF NOT EXISTS turns_of_agent ON assistant.turns (agent, id);
-- One turn at a time answers a conversation.
CREATE UNIQUE INDEX IF NOT EXISTS turns_of_conversation ON assistant.turns (conversation)
    WHERE trigger = 'message' AND outcome = 'running';
-- What was used since a time is found without reading every turn.
CREATE INDEX IF NOT EXISTS turns_that_cost
    ON assistant.turns (started_at) WHERE requests > 0;
-- What is old is found so, too.
CREATE INDEX IF NOT EXISTS turns_of_nothing
    ON assistant.turns (started_at) WHERE outcome IN ('skipped', 'silent');

-- What was sent and came back in a turn, step by step. Rows are appended in the order of their
-- times, here and in other tables, so that a BRIN index, which costs next to nothing, tells where
-- to look.
CREATE TABLE IF NOT EXISTS assistant.turn_steps (
    turn_id bigint NOT NULL REFERENCES assistant.turns (id) ON DELETE CASCADE,
    position integer NOT NULL,
    kind text NOT NULL CHECK (kind IN ('request', 'response', 'tool_call', 'tool_result')),
    content jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (turn_id, position)
);
CREATE INDEX IF NOT EXISTS turn_steps_by_time
    ON assistant.turn_steps USING brin (at) WITH (autosummarize = on);

-- What has come of a reply so far, for those who watch it come. Unlogged: a crash of the server
-- loses it, and the turn with it.
CREATE UNLOGGED TABLE IF NOT EXISTS assistant.partial_replies (
    turn_id bigint PRIMARY KEY REFERENCES assistant.turns (id) ON DELETE CASCADE,
    text text NOT NULL
);

-- Whoever ends a turn, what had come of its reply goes with it.
CREATE OR REPLACE FUNCTION assistant.drop_partial_reply() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM assistant.partial_replies WHERE turn_id = NEW.id;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER assistant_drop_partial_reply AFTER UPDATE OF outcome ON assistant.turns
    FOR EACH ROW WHEN (NEW.outcome <> 'running')
    EXECUTE FUNCTION assistant.drop_partial_reply();

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
CREATE INDEX IF NOT EXISTS messages_waiting
    ON assistant.messages (conversation, position) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS messages_tried_again ON assistant.messages (conversation)
    WHERE state = 'waiting' AND retry_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS messages_of_turn ON assistant.messages (turn_id);
CREATE INDEX IF NOT EXISTS messages_by_time
    ON assistant.messages USING brin (created_at) WITH (autosummarize = on);

-- The sender of a message is the user of its session, whatever a writer says, then and later.
CREATE OR REPLACE FUNCTION assistant.stamp_sender() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.sender := CASE TG_OP WHEN 'INSERT' THEN session_user ELSE OLD.sender END;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER assistant_stamp_sender
    BEFORE INSERT OR UPDATE OF sender ON assistant.messages
    FOR EACH ROW EXECUTE FUNCTION assistant.stamp_sender();

-- One client cannot fill the database, or the days of its agents, with messages. A thousand is
-- ten turns of a hundred messages each: more than anybody waits for. What schedules ask may be ten
-- times as many, so that nobody keeps them out by filling a conversation.
-- SECURITY DEFINER, so that a program that may only insert messages need not be granted more.
CREATE OR REPLACE FUNCTION assistant.limit_waiting() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
-- A plan made while the table was small must not be kept when it is large.
SET enable_seqscan = off SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most integer := CASE WHEN NEW.source = 'schedule' THEN 10000 ELSE 1000 END;
BEGIN
    IF octet_length(NEW.content) > 256000 THEN
        RAISE EXCEPTION 'a message has at most 256,000 bytes; this has %',
            octet_length(NEW.content) USING ERRCODE = 'program_limit_exceeded';
    END IF;
    PERFORM 1 FROM assistant.messages
    WHERE conversation = NEW.conversation AND state = 'waiting' OFFSET most - 1 LIMIT 1;
    -- One that is known already under its id is no further one.
    IF FOUND AND NOT EXISTS (
        SELECT FROM assistant.messages
        WHERE id = NEW.id OR (source = NEW.source AND external_id = NEW.external_id)) THEN
        RAISE EXCEPTION '% messages wait in this conversation, as many as may', most USING
            ERRCODE = 'AS001', HINT = 'Try again when some of them are answered.';
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER assistant_limit_waiting BEFORE INSERT ON assistant.messages
    FOR EACH ROW WHEN (NEW.state = 'waiting') EXECUTE FUNCTION assistant.limit_waiting();

-- Keeps a message; null where one is known under its id, or its source's own id for it. It commits,
-- so that it cannot be called within a transaction. A commit that notifies holds up all others that
-- do, until the disk, or the standbys, have it: so the message is told of in a second one. What is
-- lost between is found by polling.
CREATE OR REPLACE PROCEDURE assistant.put_message(
    INOUT message uuid, conversation text, content text, source text, external_id text
) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO assistant.messages (id, conversation, role, content, source, external_id, state)
    VALUES (message, conversation, 'user', content, source, external_id, 'waiting')
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        message := NULL;
        RETURN;
    END IF;
    COMMIT;
    PERFORM pg_notify('assistant_messages', 'sent');
END
$$;

-- When each waiting message may be tried: not while a turn runs in its conversation, nor before
-- those before it, but commands to the assistant itself need not wait for a model that is being
-- tried again. What is rare is looked for first, in sets that are small, since a claim looks at all
-- messages that wait.
CREATE OR REPLACE VIEW assistant.waiting_messages AS
SELECT id, conversation, position,
    CASE WHEN EXISTS (
            SELECT FROM assistant.turns
            WHERE turns.conversation = message.conversation
                AND trigger = 'message' AND outcome = 'running') THEN 'infinity'
        WHEN NOT EXISTS (
            SELECT FROM assistant.messages AS again
            WHERE again.conversation = message.conversation
                AND again.state = 'waiting' AND again.retry_at IS NOT NULL) THEN '-infinity'
        WHEN retry_at IS NULL AND content ~ '^\s*/[a-z]+(\s|$)' THEN '-infinity'
        ELSE coalesce((
            SELECT first.retry_at FROM assistant.messages AS first
            WHERE first.conversation = message.conversation AND first.state = 'waiting'
            ORDER BY first.position LIMIT 1), '-infinity')
    END AS ready_at
FROM assistant.messages AS message WHERE state = 'waiting';

-- The turns that answer messages and whose process is gone.
CREATE OR REPLACE VIEW assistant.orphaned_turns AS
SELECT id, agent, token FROM assistant.turns
WHERE trigger = 'message' AND outcome = 'running' AND NOT EXISTS (
    SELECT FROM assistant.leases
    WHERE leases.agent = turns.agent AND leases.token = turns.token
        AND assistant.lease_lasts(leases.expires_at));

-- A turn that begins, or is answered, and what the board says of it are one commit, one round trip.

-- Begins a turn for each of the conversations that wait longest, with all that waits there.
-- Returns the messages, and one row more with what the board says since, and in how many seconds
-- another message may be tried; null where none waits, infinite where all of them wait for turns.
-- Returns nothing where the lease is not the worker's.
CREATE OR REPLACE FUNCTION assistant.begin_turns(
    worker text, held bigint, the_model text, most integer
) RETURNS TABLE (
    turn_id bigint, "position" bigint, id uuid, conversation text, role text, content text,
    sender text, source text, state text, created_at timestamptz, attempts integer, error text,
    entry jsonb, seconds double precision
) LANGUAGE plpgsql SET enable_seqscan = off
-- Sooner than the worker gives it up, or it might begin turns that nobody executes.
SET lock_timeout = '10s' AS $$
#variable_conflict use_column
DECLARE
    next text;
    chosen text[] := '{}';
BEGIN
    PERFORM FROM assistant.messages WHERE state = 'waiting' LIMIT 1;
    IF NOT FOUND THEN
        -- Nothing is locked, so that nothing need be written.
        IF EXISTS (SELECT FROM assistant.leases
            WHERE agent = worker AND token = held AND expires_at > clock_timestamp()) THEN
            RETURN NEXT;
        END IF;
        RETURN;
    END IF;
    PERFORM FROM assistant.leases
    WHERE agent = worker AND token = held AND expires_at > clock_timestamp()
    FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Row by row, as it costs something to tell whether a message may be begun.
    FOR next IN
        SELECT conversation FROM assistant.waiting_messages
        WHERE ready_at <= clock_timestamp() ORDER BY position LIMIT 100
    LOOP
        IF next <> ALL (chosen) THEN
            chosen := chosen || next;
        END IF;
        EXIT WHEN cardinality(chosen) >= most;
    END LOOP;
    IF cardinality(chosen) = 0 THEN
        SELECT CASE min(ready_at) WHEN 'infinity' THEN 'infinity' ELSE extract(epoch FROM
            greatest(min(ready_at), clock_timestamp()) - clock_timestamp()) END
        INTO seconds
        FROM assistant.waiting_messages HAVING count(*) > 0;
        RETURN NEXT;
        RETURN;
    END IF;
    -- The turns are begun in one order for all, so that two hosts never wait for each other.
    RETURN QUERY WITH ready AS (
        SELECT id, row_number() OVER (PARTITION BY conversation ORDER BY position) AS number
        FROM assistant.waiting_messages
        WHERE conversation = ANY (chosen) AND ready_at <= clock_timestamp()
    ), batch AS (
        SELECT id, conversation FROM assistant.messages
        WHERE state = 'waiting' AND id = ANY (ARRAY(SELECT id FROM ready WHERE number <= 100))
        ORDER BY position FOR UPDATE
    ), turn AS (
        INSERT INTO assistant.turns (agent, trigger, conversation, token, model)
        SELECT worker, 'message', conversation, held, the_model
        FROM batch GROUP BY conversation ORDER BY conversation
        ON CONFLICT (conversation) WHERE trigger = 'message' AND outcome = 'running' DO NOTHING
        RETURNING id, conversation
    )
    UPDATE assistant.messages AS message
    SET state = 'working', attempts = attempts + 1, turn_id = turn.id, retry_at = NULL
    FROM batch JOIN turn USING (conversation) WHERE message.id = batch.id
    RETURNING turn.id, message.position, message.id, message.conversation, message.role,
        message.content, message.sender, message.source, message.state, message.created_at,
        message.attempts, message.error, NULL::jsonb, NULL::double precision;
    -- Where another worker was faster, there is nothing to show.
    IF FOUND THEN
        entry := assistant.show_turns(worker, held, NULL);
    END IF;
    PERFORM FROM assistant.messages WHERE state = 'waiting' LIMIT 1;
    seconds := CASE WHEN FOUND THEN 0 END;
    RETURN NEXT;
END
$$;

-- Keeps replies, each with its turn, that turn's conversation, its text and the messages that it
-- answers, and ends the turns. Returns the turns that it ended, which leaves out those that were
-- ended before; and what the board says since. Returns nulls where the lease is not the worker's.
CREATE OR REPLACE FUNCTION assistant.keep_replies(
    worker text, held bigint, replies jsonb, OUT ended bigint[], OUT entry jsonb
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM assistant.leases
    WHERE agent = worker AND token = held AND expires_at > clock_timestamp()
    FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    WITH given AS (
        SELECT * FROM ROWS FROM (
            jsonb_to_recordset(replies)
                AS (turn bigint, conversation text, id uuid, text text, answers uuid[])
        ) WITH ORDINALITY AS reply(turn, conversation, id, text, answers, number)
    ), done AS (
        UPDATE assistant.turns SET outcome = 'done', ended_at = clock_timestamp()
        WHERE id IN (SELECT turn FROM given) AND outcome = 'running'
        RETURNING id
    ), reply AS (
        SELECT given.* FROM given JOIN done ON done.id = given.turn
    ), said AS (
        INSERT INTO assistant.messages (id, conversation, role, content, source, state, turn_id)
        SELECT id, conversation, 'assistant', text, 'conversation', 'said', turn
        FROM reply ORDER BY number
    ), answered AS (
        UPDATE assistant.messages AS message
        SET state = 'answered', reply_id = reply.id, answered_at = clock_timestamp(), error = NULL
        FROM reply
        WHERE message.id = ANY(reply.answers) AND turn_id = reply.turn AND state = 'working'
    )
    SELECT array_agg(id) INTO ended FROM done;
    IF ended IS NULL THEN
        RETURN;
    END IF;
    entry := assistant.show_turns(worker, held, '{"status": "idle", "detail": null}');
    PERFORM pg_notify('assistant_messages', 'answered');
    PERFORM FROM assistant.messages WHERE state = 'waiting' LIMIT 1;
    IF FOUND THEN
        -- Another worker may begin now what waited for these turns.
        PERFORM pg_notify('assistant_messages', 'sent');
    END IF;
END
$$;

-- schedules: what is to be said at a time, every so often, or as a cron line says.
-- due_at is the next time while it is active, and the last one after that.
CREATE TABLE IF NOT EXISTS assistant.schedules (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation text NOT NULL,
    content text NOT NULL,
    due_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    fired_at timestamptz,
    message_id uuid REFERENCES assistant.messages (id),
    -- What happens: a reminder or a text is said, or the text is put into the inbox.
    action text NOT NULL DEFAULT 'remind' CHECK (action IN ('remind', 'say', 'ask')),
    kind text NOT NULL DEFAULT 'at' CHECK (kind IN ('at', 'every', 'cron')),
    -- The duration or the cron line, as it was given; none for a single time.
    spec text,
    zone text,
    catch_up text NOT NULL DEFAULT 'once' CHECK (catch_up IN ('once', 'skip')),
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'done', 'cancelled')),
    -- How often the firing at due_at has failed, and when it is tried again.
    attempts integer NOT NULL DEFAULT 0,
    retry_at timestamptz,
    error text
);
CREATE INDEX IF NOT EXISTS schedules_next
    ON assistant.schedules (coalesce(retry_at, due_at)) WHERE state = 'active';

-- schedule_runs: what became of a due time, in one row, whoever fires: so it is fired once.
-- A run at somebody's request has the time of the request.
CREATE TABLE IF NOT EXISTS assistant.schedule_runs (
    schedule_id bigint NOT NULL REFERENCES assistant.schedules (id) ON DELETE CASCADE,
    due_at timestamptz NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('fired', 'skipped', 'failed')),
    missed integer NOT NULL DEFAULT 0,
    requested boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 1,
    error text,
    message_id uuid REFERENCES assistant.messages (id),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (schedule_id, due_at)
);

-- board_events: every transition of an agent. `since` is when its status, whatever the detail,
-- began; null where the status stays as it was. The newest row of an agent is always what the board
-- says of it.
CREATE TABLE IF NOT EXISTS assistant.board_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agent text NOT NULL,
    status text,
    detail text,
    since timestamptz,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS board_events_of_agent ON assistant.board_events (agent, id);
CREATE INDEX IF NOT EXISTS board_events_of_status ON assistant.board_events (agent, id)
    WHERE since IS NOT NULL;
CREATE INDEX IF NOT EXISTS board_events_by_time
    ON assistant.board_events USING brin (at) WITH (autosummarize = on);

-- Whoever writes the board, with plain SQL too, has its transitions recorded. What an agent said
-- last is known from the board as it was; only of one that was not there the last event is read:
-- with `= ANY` of one agent, in the same time however long the timeline is.
CREATE OR REPLACE FUNCTION assistant.record_board() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET enable_seqscan = off SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before jsonb := '{}';
BEGIN
    IF jsonb_typeof(NEW.value) <> 'object' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND jsonb_typeof(OLD.value) = 'object' THEN
        before := OLD.value || '{}';
    END IF;
    INSERT INTO assistant.board_events (agent, status, detail, since)
    SELECT entry.key, entry.value ->> 'status', entry.value ->> 'detail',
        CASE WHEN (entry.value ->> 'status' = last.entry ->> 'status') IS NOT TRUE
            THEN clock_timestamp() END
    FROM jsonb_each(NEW.value) AS entry
    CROSS JOIN LATERAL (
        SELECT coalesce(CASE jsonb_typeof(before -> entry.key)
            WHEN 'object' THEN before -> entry.key END, (
            SELECT jsonb_build_object('status', status, 'detail', detail)
            FROM assistant.board_events
            WHERE agent = ANY (ARRAY[entry.key]) ORDER BY agent DESC, id DESC LIMIT 1
        )) AS entry
        OFFSET 0
    ) AS last
    WHERE jsonb_typeof(entry.value) = 'object'
        AND entry.value IS DISTINCT FROM before -> entry.key
        AND (last.entry IS NULL
            OR entry.value ->> 'status' IS DISTINCT FROM last.entry ->> 'status'
            OR entry.value ->> 'detail' IS DISTINCT FROM last.entry ->> 'detail');
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER assistant_record_board_insert AFTER INSERT ON public.kv
    FOR EACH ROW WHEN (NEW.key = 'status_board') EXECUTE FUNCTION assistant.record_board();
CREATE OR REPLACE TRIGGER assistant_record_board_update AFTER UPDATE ON public.kv
    FOR EACH ROW WHEN (NEW.key = 'status_board') EXECUTE FUNCTION assistant.record_board();

-- agent_status: one row an agent for any tool. live: its holder renewed in time; stale: its
-- holder is gone without saying so; neither: nobody holds it. Of a board that was there before its
-- events were recorded, the first of them tells since when its status has been so at least.
CREATE OR REPLACE VIEW assistant.agent_status AS
SELECT
    entry.key AS agent,
    entry.value ->> 'status' AS status,
    entry.value ->> 'detail' AS detail,
    coalesce(last.since, (
        SELECT since FROM assistant.board_events
        WHERE board_events.agent = ANY (ARRAY[entry.key]) AND since IS NOT NULL
        ORDER BY board_events.agent DESC, id DESC LIMIT 1
    ), (
        SELECT at FROM assistant.board_events
        WHERE board_events.agent = ANY (ARRAY[entry.key])
        ORDER BY board_events.agent, id LIMIT 1
    )) AS since,
    last.at AS updated_at,
    coalesce(assistant.lease_lasts(leases.expires_at), false) AS live,
    coalesce(NOT assistant.lease_lasts(leases.expires_at), false) AS stale,
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
    WHERE board_events.agent = ANY (ARRAY[entry.key])
    ORDER BY board_events.agent DESC, id DESC LIMIT 1
) AS last ON true
WHERE kv.key = 'status_board' AND jsonb_typeof(entry.value) = 'object'
    AND (kv.expires_at IS NULL OR kv.expires_at > clock_timestamp());

-- Holds nothing. Whoever updates the board waits here for those before, and not at its row, where
-- each commit wakes all who wait; no advisory lock, as any user of the server can hold one.
CREATE TABLE IF NOT EXISTS assistant.board_queue ();

-- A row each backend that had to wait for the commit of another, with the entry that it waits with,
-- or waited last; the next to write takes all of them along, and marks them. An entry that is gone
-- was not written: who still wants it begins again.
-- `place` tells the order in which they came, `written` that another wrote it, `collected` that its
-- writer knows.
CREATE UNLOGGED TABLE IF NOT EXISTS assistant.board_slots (
    pid integer PRIMARY KEY,
    place bigint GENERATED ALWAYS AS IDENTITY,
    -- What the timeline's index cannot hold must not stop those who take it along.
    agent text NOT NULL CHECK (octet_length(agent) <= 400),
    entry jsonb NOT NULL,
    token bigint,
    written boolean NOT NULL DEFAULT false,
    collected boolean NOT NULL DEFAULT false,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Merges entries into the board, or into an empty one where no board is stored.
CREATE OR REPLACE FUNCTION assistant.merge_board(entries jsonb) RETURNS void
LANGUAGE plpgsql
-- A plan made while a table was small must not be kept when it is large.
SET enable_seqscan = off AS $$
BEGIN
    UPDATE public.kv SET expires_at = NULL, value =
        CASE WHEN jsonb_typeof(value) = 'object' THEN value ELSE '{}' END || entries
    WHERE key = 'status_board';
    IF NOT FOUND THEN
        INSERT INTO public.kv AS board (key, value) VALUES ('status_board', entries)
        ON CONFLICT (key) DO UPDATE SET expires_at = NULL, value =
            CASE WHEN jsonb_typeof(board.value) = 'object' THEN board.value ELSE '{}' END
            || excluded.value;
    END IF;
END
$$;

-- Locks the leases of agents whose entries wait, so that none is taken over; returns the token of
-- each, or null where it has lapsed. The caller holds the queue, for which whoever takes an agent
-- over, or gives it back, may wait with the lease locked: such a lease is left out, or all are.
CREATE OR REPLACE FUNCTION assistant.lock_leases_of_slots() RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET lock_timeout = '1ms' AS $$
DECLARE
    held jsonb;
BEGIN
    SELECT jsonb_object_agg(agent, CASE WHEN live THEN token END) INTO held
    FROM (
        SELECT agent, token, expires_at > clock_timestamp() AS live FROM assistant.leases
        WHERE agent IN (SELECT agent FROM assistant.board_slots WHERE NOT written)
        ORDER BY agent FOR KEY SHARE SKIP LOCKED
    ) AS locked;
    RETURN coalesce(held, '{}');
-- Where a lease has been renewed since this began, SKIP LOCKED does wait.
EXCEPTION WHEN lock_not_available THEN
    RETURN '{}';
END
$$;

-- Writes the entries that wait and that their writers may write, those of an agent in their order,
-- but for the agents of which `but` has entries. The caller holds the queue.
CREATE OR REPLACE FUNCTION assistant.write_slots(but jsonb) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    tokens jsonb;
    entries jsonb;
    complete boolean;
BEGIN
    -- Nobody wants them any more: a writer gives up after 15 seconds, and collects within moments.
    DELETE FROM assistant.board_slots
    WHERE at < clock_timestamp() - CASE
            WHEN collected THEN interval '2 seconds'
            WHEN written THEN interval '1 minute' ELSE interval '20 seconds' END
        -- Its writer is gone: looked for only of those that wait for long.
        OR NOT written AND at < clock_timestamp() - interval '1 second'
            AND NOT EXISTS (SELECT FROM pg_stat_get_activity(pid));
    tokens := assistant.lock_leases_of_slots();
    LOOP
        WITH next AS (
            SELECT DISTINCT ON (agent) pid, place FROM assistant.board_slots AS waiting
            WHERE NOT written AND NOT but ? agent AND CASE
                WHEN tokens ? agent THEN token IS NOT DISTINCT FROM (tokens ->> agent)::bigint
                ELSE token IS NULL AND NOT EXISTS (
                    SELECT FROM assistant.leases WHERE leases.agent = waiting.agent) END
            ORDER BY agent, place
        ), taken AS (
            -- A backend that was broken off may put another entry into its slot at the moment.
            UPDATE assistant.board_slots AS slot SET written = true FROM next
            WHERE slot.pid = next.pid AND slot.place = next.place
            RETURNING slot.agent, slot.entry
        )
        -- Counted as it was before, it saves a last round that would find nothing.
        SELECT jsonb_object_agg(agent, entry),
            count(*) = (SELECT count(*) FROM assistant.board_slots WHERE NOT written)
        INTO entries, complete
        FROM taken;
        EXIT WHEN entries IS NULL;
        PERFORM assistant.merge_board(entries);
        IF current_setting('synchronous_commit') = 'off' THEN
            -- Others rely on this commit.
            PERFORM set_config('synchronous_commit', 'local', true);
        END IF;
        EXIT WHEN complete;
    END LOOP;
    -- What its writer may write again one day must not come after what is newer.
    DELETE FROM assistant.board_slots AS older USING assistant.board_slots AS newer
    WHERE NOT older.written AND newer.written AND newer.agent = older.agent
        AND newer.place > older.place;
END
$$;

-- Writes what others wait for, and then entries of one's own. The caller holds the queue.
-- What waits for the same agents may be newer, or older and given up: who still wants it begins
-- again.
CREATE OR REPLACE FUNCTION assistant.write_after_slots(entries jsonb) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM assistant.board_slots WHERE NOT written AND entries ? agent;
    PERFORM assistant.write_slots(entries);
    PERFORM assistant.merge_board(entries);
END
$$;

-- Puts entries on the board, all or none, after those that wait. `rounds`: an array of objects, an
-- entry each agent, that are put there one after the other; the first names all agents. `tokens`:
-- the token of each agent that the writer holds. An agent that is held accepts only its holder's
-- token, and only while the lease lasts; without a token, one speaks for agents that nobody holds.
-- Returns the agents that were refused; where there is one, nothing was written. Else an empty
-- array.
CREATE OR REPLACE FUNCTION assistant.write_board(rounds jsonb, tokens jsonb) RETURNS text[]
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    refused text[];
BEGIN
    -- In one order for all, so that a batch and a take-over never wait for each other.
    SELECT array_agg(held.agent) FILTER (WHERE CASE WHEN held.live
            THEN held.token IS DISTINCT FROM held.given ELSE held.given IS NOT NULL END),
        tokens - coalesce(array_agg(held.agent), '{}')
    INTO refused, tokens
    FROM (
        SELECT agent, token, expires_at > clock_timestamp() AS live,
            (tokens ->> agent)::bigint AS given
        FROM assistant.leases WHERE agent = ANY (ARRAY(SELECT jsonb_object_keys(rounds -> 0)))
        ORDER BY agent FOR KEY SHARE
    ) AS held;
    -- What is left has a token but no lease.
    IF tokens <> '{}' THEN
        refused := refused || ARRAY(SELECT jsonb_object_keys(tokens));
    END IF;
    IF refused IS NOT NULL THEN
        RETURN refused;
    END IF;
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    FOR place IN 0 .. jsonb_array_length(rounds) - 1 LOOP
        UPDATE public.kv SET expires_at = NULL, value = value || (rounds -> place)
        WHERE key = 'status_board' AND jsonb_typeof(value) = 'object'
            AND NOT EXISTS (SELECT FROM assistant.board_slots WHERE NOT written);
        IF NOT FOUND THEN
            PERFORM assistant.write_after_slots(rounds -> place);
        END IF;
    END LOOP;
    RETURN '{}';
END
$$;

-- Puts one entry on the board, and returns what write_board does.
CREATE OR REPLACE FUNCTION assistant.write_entry(the_agent text, entry jsonb, given bigint)
RETURNS text[] LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    held bigint;
    live boolean;
BEGIN
    SELECT token, expires_at > clock_timestamp() INTO held, live
    FROM assistant.leases WHERE agent = the_agent FOR KEY SHARE;
    IF (CASE WHEN live THEN held IS DISTINCT FROM given ELSE given IS NOT NULL END) THEN
        RETURN ARRAY[the_agent];
    END IF;
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    UPDATE public.kv SET expires_at = NULL, value = value || jsonb_build_object(the_agent, entry)
    WHERE key = 'status_board' AND jsonb_typeof(value) = 'object'
        AND NOT EXISTS (SELECT FROM assistant.board_slots WHERE NOT written);
    IF NOT FOUND THEN
        PERFORM assistant.write_after_slots(jsonb_build_object(the_agent, entry));
    END IF;
    RETURN '{}';
END
$$;

-- Whether another has written the entry of this backend, which then knows it.
CREATE OR REPLACE FUNCTION assistant.collect_slot() RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    UPDATE assistant.board_slots SET collected = true WHERE pid = pg_backend_pid() AND written;
    RETURN FOUND;
END
$$;

-- Writes all entries that wait, and returns of that of this backend what write_board does; null
-- where it was not written, and whoever still wants it is to call again. The caller holds the queue,
-- and must not wait for a lease.
CREATE OR REPLACE FUNCTION assistant.write_with_slots(the_agent text, given bigint) RETURNS text[]
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM assistant.write_slots('{}');
    IF assistant.collect_slot() THEN
        RETURN '{}';
    END IF;
    DELETE FROM assistant.board_slots WHERE pid = pg_backend_pid();
    RETURN CASE WHEN (SELECT token FROM assistant.leases
            WHERE agent = the_agent AND expires_at > clock_timestamp()) IS DISTINCT FROM given
        THEN ARRAY[the_agent] END;
END
$$;

-- Waits for those before, and writes all entries that wait, unless another has written that of this
-- backend. Returns of that one what write_board does; null where it was not written, and whoever
-- still wants it is to call again; or the error by which it ended, and the entry is taken back.
CREATE OR REPLACE FUNCTION assistant.write_slot(
    the_agent text, given bigint,
    OUT refused text[], OUT by_another boolean,
    OUT state text, OUT problem text, OUT detail text, OUT hint text
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    by_another := assistant.collect_slot();
    refused := CASE WHEN by_another THEN '{}'
        ELSE assistant.write_with_slots(the_agent, given) END;
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, problem = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    -- One that is locked is being written at the moment.
    DELETE FROM assistant.board_slots WHERE pid IN (
        SELECT pid FROM assistant.board_slots
        WHERE pid = pg_backend_pid() AND NOT written FOR UPDATE SKIP LOCKED);
END
$$;

-- Puts one entry on the board, as write_board does, in a commit that it shares with all who come
-- while another is under way; null where it was not written, and whoever still wants it is to call
-- again. It commits, so that it cannot be called within a transaction.
CREATE OR REPLACE PROCEDURE assistant.put_entry(
    the_agent text, entry jsonb, given bigint, INOUT refused text[]
) LANGUAGE plpgsql AS $$
DECLARE
    ended record;
BEGIN
    -- A hint that is cheap to ask for: anybody can hold this lock, and the queue is what locks.
    IF pg_try_advisory_xact_lock(7238114906) THEN
        refused := assistant.write_entry(the_agent, entry, given);
        RETURN;
    END IF;
    INSERT INTO assistant.board_slots (pid, agent, entry, token)
    VALUES (pg_backend_pid(), the_agent, entry, given)
    ON CONFLICT (pid) DO UPDATE SET
        place = DEFAULT, agent = excluded.agent, entry = excluded.entry, token = excluded.token,
        written = false, collected = false, at = excluded.at;
    -- It does not wait for the disk.
    COMMIT;
    SELECT * INTO ended FROM assistant.write_slot(the_agent, given);
    refused := ended.refused;
    IF ended.state IS NOT NULL THEN
        COMMIT;
        RAISE USING ERRCODE = ended.state, MESSAGE = ended.problem,
            DETAIL = ended.detail, HINT = ended.hint;
    END IF;
    IF ended.by_another AND current_setting('synchronous_standby_names') <> '' THEN
        COMMIT;
        -- Whoever wrote it may have broken off its wait for the standbys: so this one waits.
        PERFORM pg_logical_emit_message(true, 'assistant', '');
    END IF;
END
$$;

-- Puts on the board what a worker does, which its turns tell, or `at_rest` where none runs.
-- Returns its entry. The caller has made sure, under a lock, that the lease is the worker's.
CREATE OR REPLACE FUNCTION assistant.show_turns(worker text, held bigint, at_rest jsonb)
RETURNS jsonb LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    entry jsonb := at_rest;
    doing text;
BEGIN
    -- Whoever shows waits for those before, and sees what they have committed.
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    SELECT CASE count(*) WHEN 1 THEN 'answering 1 message in '
            ELSE 'answering ' || count(*) || ' messages in ' END
        || CASE count(DISTINCT turns.id) WHEN 1 THEN min(turns.conversation)
            ELSE count(DISTINCT turns.id) || ' conversations' END
    INTO doing
    FROM assistant.turns JOIN assistant.messages ON messages.turn_id = turns.id
    WHERE turns.agent = worker AND turns.token = held AND turns.outcome = 'running'
        AND messages.state = 'working'
    HAVING count(*) > 0;
    IF FOUND THEN
        IF octet_length(doing) > 2000 THEN
            doing := left(doing, 499) || '…';
        END IF;
        entry := jsonb_build_object('status', 'running', 'detail', doing);
    END IF;
    UPDATE public.kv SET expires_at = NULL, value = value || jsonb_build_object(worker, entry)
    WHERE key = 'status_board' AND jsonb_typeof(value) = 'object'
        AND NOT EXISTS (SELECT FROM assistant.board_slots WHERE NOT written);
    IF NOT FOUND THEN
        PERFORM assistant.write_after_slots(jsonb_build_object(worker, entry));
    END IF;
    RETURN entry;
END
$$;

-- A trigger function that acts with its owner's rights may be put on no table but ours: whoever
-- puts it on one of their own, which takes no right here, chooses what it is given. Firing one
-- takes no right.
REVOKE EXECUTE ON FUNCTION
    assistant.stamp_kv(), assistant.stamp_kv_again(), assistant.notify_kv(),
    assistant.notify_kv_everything(), assistant.record_board(), assistant.stamp_sender(),
    assistant.limit_waiting(), assistant.drop_partial_reply()
FROM PUBLIC;

COMMIT;
