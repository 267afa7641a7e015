-- Stores a message and returns it as JSON; no row if its message_id is taken.
-- The chat is locked before the number is drawn, so that in a chat the order of numbers is the order of commits.
WITH chat AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(uuid_hash_extended(%(chat_id)s::uuid, 0))
)
INSERT INTO messages (
    message_id,
    chat_id,
    content,
    rating,
    sent_at,
    role
)
SELECT
    %(message_id)s::uuid,
    %(chat_id)s::uuid,
    %(content)s,
    %(rating)s::boolean,
    COALESCE(%(sent_at)s::timestamptz, clock_timestamp()),
    %(role)s
FROM chat
ON CONFLICT (message_id) DO NOTHING
RETURNING message_json(message_id, chat_id, content, rating, sent_at, role)
