-- Deletes a chat's messages, and returns how many there were.
-- Where there were none, it writes all the same, so that the answer waits for a synchronous standby as the first one did.
WITH deleted AS (
    DELETE FROM messages
    WHERE chat_id = %(chat_id)s::uuid
    RETURNING message_id
)
SELECT
    count(*),
    CASE WHEN count(*) = 0 THEN pg_logical_emit_message(TRUE, 'repeat', '') END
FROM deleted
