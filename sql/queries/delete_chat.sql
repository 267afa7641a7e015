-- Deletes a chat's messages, and returns how many there were.
WITH deleted AS (
    DELETE FROM messages
    WHERE chat_id = %(chat_id)s::uuid
    RETURNING message_id
)
SELECT count(*)
FROM deleted
