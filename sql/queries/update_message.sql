-- Changes what is given of content and rating, if the other fields that are given are as stored; returns it as JSON.
UPDATE messages
SET
    content = COALESCE(%(content)s, content),
    rating = CASE WHEN %(rates)s THEN %(rating)s::boolean ELSE rating END
WHERE message_id = %(message_id)s::uuid
    AND chat_id = COALESCE(%(chat_id)s::uuid, chat_id)
    AND role = COALESCE(%(role)s, role)
    AND sent_at = COALESCE(%(sent_at)s::timestamptz, sent_at)
RETURNING message_json(message_id, chat_id, content, rating, sent_at, role)
