-- Returns a message as JSON.
SELECT message_json(message_id, chat_id, content, rating, sent_at, role)
FROM messages
WHERE message_id = %(message_id)s::uuid
