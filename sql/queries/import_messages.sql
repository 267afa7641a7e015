-- Stores messages, all or none, and returns how many are new, and the lines whose message_id is something else's.
-- It writes even where none is new, so that the answer waits for a synchronous standby as the first one did.
SELECT
    stored,
    taken
FROM import_messages(%(lines)s::json)
CROSS JOIN pg_logical_emit_message(TRUE, 'import', '')
