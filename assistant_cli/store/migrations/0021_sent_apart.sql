-- A commit that notifies holds up all others that do, until the disk, or the standbys, have it. Those
-- who send at the same time need not wait for each other: a message is kept first, and told of then.

-- Keeps a message; null where one is known under its id, or its source's own id for it. It commits,
-- so that it cannot be called within a transaction. What is lost between is found by polling.
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
