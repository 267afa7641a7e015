-- Returns a message's place in the order in which they were stored.
SELECT seq
FROM messages
WHERE message_id = %(message_id)s::uuid
