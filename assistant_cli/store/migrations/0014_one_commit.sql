-- A turn that begins, or is answered, and what the board says of it are one commit, one round trip.

-- Puts entries on the board, all or none. `rounds`: an array of objects, an entry each agent, that
-- are put there one after the other; the first names all agents. `tokens`: the token of each agent
-- that the writer holds. An agent that is held accepts only its holder's token, and only while the
-- lease lasts; without a token, one speaks for agents that nobody holds.
-- It takes the place of update_board, which stays for programs that run while this is migrated.
-- Returns the agents that were refused; where there is one, nothing was written. Else null.
CREATE OR REPLACE FUNCTION assistant.write_board(rounds jsonb, tokens jsonb) RETURNS text[]
LANGUAGE plpgsql
-- A plan made while a table was small must not be kept when it is large.
SET enable_seqscan = off AS $$
DECLARE
    entries jsonb;
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
        entries := rounds -> place;
        UPDATE public.kv SET expires_at = NULL, value =
            CASE WHEN jsonb_typeof(value) = 'object' THEN value ELSE '{}' END || entries
        WHERE key = 'status_board';
        IF NOT FOUND THEN
            INSERT INTO public.kv AS board (key, value) VALUES ('status_board', entries)
            ON CONFLICT (key) DO UPDATE SET expires_at = NULL, value =
                CASE WHEN jsonb_typeof(board.value) = 'object' THEN board.value ELSE '{}' END
                || excluded.value;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- The turns that answer messages and whose process is gone.
CREATE OR REPLACE VIEW assistant.orphaned_turns AS
SELECT id, agent, token FROM assistant.turns
WHERE trigger = 'message' AND outcome = 'running' AND NOT EXISTS (
    SELECT FROM assistant.leases
    WHERE leases.agent = turns.agent AND leases.token = turns.token
        AND assistant.lease_lasts(leases.expires_at));

-- As before, and a plan made while the timeline was short is not kept when it is long.
ALTER FUNCTION assistant.record_board() SET enable_seqscan = off;

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
    WHERE key = 'status_board' AND jsonb_typeof(value) = 'object';
    IF NOT FOUND THEN
        -- It is missing, or no board.
        PERFORM assistant.write_board(jsonb_build_array(jsonb_build_object(worker, entry)),
            jsonb_build_object(worker, held));
    END IF;
    RETURN entry;
END
$$;

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
