-- Takes a worker's mark off a turn, and returns the turn's id if there was one.
DELETE FROM turns
WHERE message_id = %(message_id)s::uuid
    AND worker_id = %(worker_id)s::uuid
RETURNING message_id::text
