-- The messages, a summary of each chat that triggers keep, and the form in which both are given out.
CREATE TABLE messages (
    seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE,  -- the order in which they were stored; gaps mean nothing
    message_id uuid PRIMARY KEY CHECK (message_id::text ~ '^.{14}4.{4}[89ab]'),
    chat_id uuid NOT NULL CHECK (chat_id::text ~ '^.{14}4.{4}[89ab]'),
    content text NOT NULL CHECK (content <> ''),
    rating boolean,
    sent_at timestamptz NOT NULL CHECK (sent_at >= '0001-01-01 00:00:00+00' AND sent_at < '10000-01-01 00:00:00+00'),
    role text NOT NULL CHECK (role IN ('ai', 'human'))
);

CREATE INDEX messages_chat_id_seq ON messages (chat_id, seq);
CREATE INDEX messages_rating_seq ON messages (rating, seq) WHERE rating IS NOT NULL;
CREATE INDEX messages_sent_at ON messages (sent_at);

-- What a list of chats shows, so that it costs the same however many messages there are.
CREATE TABLE chats (
    chat_id uuid PRIMARY KEY,
    message_count bigint NOT NULL CHECK (message_count > 0),
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    first_human_seq bigint
);

CREATE UNIQUE INDEX chats_last_seq ON chats (last_seq);

CREATE FUNCTION count_stored_message() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chats AS chat (chat_id, message_count, first_seq, last_seq, first_human_seq)
    VALUES (NEW.chat_id, 1, NEW.seq, NEW.seq, CASE WHEN NEW.role = 'human' THEN NEW.seq END)
    ON CONFLICT (chat_id) DO UPDATE SET
        message_count = chat.message_count + 1,
        first_seq = LEAST(chat.first_seq, EXCLUDED.first_seq),
        last_seq = GREATEST(chat.last_seq, EXCLUDED.last_seq),
        first_human_seq = LEAST(chat.first_human_seq, EXCLUDED.first_human_seq);
    RETURN NULL;
END
$$;

CREATE TRIGGER count_stored_message AFTER INSERT ON messages
FOR EACH ROW EXECUTE FUNCTION count_stored_message();

-- Each statement of a function that is VOLATILE sees what was committed before it: so first the lock, then the look.
CREATE FUNCTION count_deleted_messages() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM chats WHERE chat_id IN (SELECT chat_id FROM deleted) ORDER BY chat_id FOR UPDATE;
    DELETE FROM chats AS chat
    WHERE chat_id IN (SELECT chat_id FROM deleted)
        AND NOT EXISTS (SELECT FROM messages WHERE messages.chat_id = chat.chat_id);
    UPDATE chats AS chat SET
        message_count = chat.message_count - gone.message_count,
        first_seq = (SELECT min(seq) FROM messages WHERE messages.chat_id = chat.chat_id),
        last_seq = (SELECT max(seq) FROM messages WHERE messages.chat_id = chat.chat_id),
        first_human_seq = (SELECT min(seq) FROM messages WHERE messages.chat_id = chat.chat_id AND role = 'human')
    FROM (SELECT chat_id, count(*) AS message_count FROM deleted GROUP BY chat_id) AS gone
    WHERE chat.chat_id = gone.chat_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER count_deleted_messages AFTER DELETE ON messages
REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION count_deleted_messages();

-- RFC 3339 in UTC, always with six decimals, whatever the session's time zone.
CREATE FUNCTION rfc3339(at timestamptz) RETURNS text LANGUAGE sql STABLE
RETURN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"');

-- A message as JSON, its fields in the contract's order.
CREATE FUNCTION message_json(
    message_id uuid, chat_id uuid, content text, rating boolean, sent_at timestamptz, role text
) RETURNS text LANGUAGE sql STABLE
RETURN concat(
    '{"message_id":"', message_id,
    '","chat_id":"', chat_id,
    '","content":', to_json(content),
    ',"rating":', COALESCE(rating::text, 'null'),
    ',"sent_at":"', rfc3339(sent_at),
    '","role":"', role, '"}'
);
