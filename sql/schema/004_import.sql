-- Stores messages, a JSON array in the order of their lines: all of them or none. Returns how many are stored by this, and
-- the lines whose message_id is something else's. A message that is there already, and is the same, is left alone.
-- Each statement of a function that is VOLATILE sees what was committed before it: so first the locks, in one order, so
-- that two imports never wait for each other in a circle; then the messages; then the look at what has them now.
CREATE FUNCTION import_messages(lines json, OUT stored bigint, OUT taken bigint[]) LANGUAGE plpgsql AS $$
DECLARE
    chat_key bigint;
BEGIN
    FOR chat_key IN
        SELECT DISTINCT uuid_hash_extended((line->>'chat_id')::uuid, 0)
        FROM json_array_elements(lines) AS line
        ORDER BY 1
    LOOP
        PERFORM pg_advisory_xact_lock(chat_key);
    END LOOP;
    BEGIN
        INSERT INTO messages (message_id, chat_id, content, rating, sent_at, role)
        SELECT message_id, chat_id, content, rating, COALESCE(sent_at, clock_timestamp()), role
        FROM ROWS FROM (
            json_to_recordset(lines) AS (
                message_id uuid, chat_id uuid, content text, rating boolean, sent_at timestamptz, role text
            )
        ) WITH ORDINALITY AS line (message_id, chat_id, content, rating, sent_at, role, number)
        ORDER BY number
        ON CONFLICT (message_id) DO NOTHING;
        GET DIAGNOSTICS stored = ROW_COUNT;
        SELECT array_agg(number ORDER BY number) INTO taken
        FROM ROWS FROM (
            json_to_recordset(lines) AS (message_id uuid, chat_id uuid, content text, sent_at timestamptz, role text)
        ) WITH ORDINALITY AS line (message_id, chat_id, content, sent_at, role, number)
        LEFT JOIN messages AS message ON message.message_id = line.message_id
        WHERE (message.chat_id, message.role, message.content, message.sent_at)
            IS DISTINCT FROM (line.chat_id, line.role, line.content, COALESCE(line.sent_at, message.sent_at));
        IF taken IS NOT NULL THEN
            RAISE SQLSTATE 'P0409';
        END IF;
    EXCEPTION WHEN SQLSTATE 'P0409' THEN  -- what the block has stored is undone
        stored := 0;
    END;
END
$$;
