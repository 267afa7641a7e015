-- Returns the message of this message_id as JSON, and whether it is the one that is being sent again.
-- FOR KEY SHARE writes, so that the answer waits for a synchronous standby as the first one did.
SELECT
    message_json(message_id, chat_id, content, rating, sent_at, role),
    chat_id = %(chat_id)s::uuid
        AND role = %(role)s
        AND content = %(content)s
        AND sent_at = COALESCE(%(sent_at)s::timestamptz, sent_at)
FROM messages
WHERE message_id = %(message_id)s::uuid
FOR KEY SHARE
