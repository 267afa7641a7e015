-- Deletes a message and returns its id.
DELETE FROM messages
WHERE message_id = %(message_id)s::uuid
RETURNING message_id
