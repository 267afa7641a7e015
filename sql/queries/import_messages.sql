-- Stores messages, all or none, and returns how many are new, and the lines whose message_id is something else's.
SELECT
    stored,
    taken
FROM import_messages(%(lines)s::json)
