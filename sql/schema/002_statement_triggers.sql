-- Counts what a statement stores in one step: a row trigger updates a chat's summary once for each message, and its
-- dead versions make a large insert into one chat quadratic.
DROP TRIGGER count_stored_message ON messages;
DROP FUNCTION count_stored_message;

CREATE FUNCTION count_stored_messages() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chats AS chat (chat_id, message_count, first_seq, last_seq, first_human_seq)
    SELECT chat_id, count(*), min(seq), max(seq), min(seq) FILTER (WHERE role = 'human')
    FROM stored
    GROUP BY chat_id
    ORDER BY chat_id
    ON CONFLICT (chat_id) DO UPDATE SET
        message_count = chat.message_count + EXCLUDED.message_count,
        first_seq = LEAST(chat.first_seq, EXCLUDED.first_seq),
        last_seq = GREATEST(chat.last_seq, EXCLUDED.last_seq),
        first_human_seq = LEAST(chat.first_human_seq, EXCLUDED.first_human_seq);
    RETURN NULL;
END
$$;

CREATE TRIGGER count_stored_messages AFTER INSERT ON messages
REFERENCING NEW TABLE AS stored
FOR EACH STATEMENT EXECUTE FUNCTION count_stored_messages();
