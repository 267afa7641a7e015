-- Deletes a message, and returns how many there were.
-- Where it was not, it writes all the same, so that the answer waits for a synchronous standby as the first one did.
WITH deleted AS (
    DELETE FROM messages
    WHERE message_id = %(message_id)s::uuid
    RETURNING message_id
)
SELECT
    count(*),
    CASE WHEN count(*) = 0 THEN pg_logical_emit_message(TRUE, 'repeat', '') END
FROM deleted
