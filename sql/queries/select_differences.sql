-- Returns for each field that never changes whether the value given, if one is, differs from the stored one.
SELECT
    chat_id <> COALESCE(%(chat_id)s::uuid, chat_id) AS chat_id,
    role <> COALESCE(%(role)s, role) AS role,
    sent_at <> COALESCE(%(sent_at)s::timestamptz, sent_at) AS sent_at
FROM messages
WHERE message_id = %(message_id)s::uuid
