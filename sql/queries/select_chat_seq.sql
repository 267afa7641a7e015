-- Returns a chat's present place: that of the message stored last in it.
SELECT last_seq
FROM chats
WHERE chat_id = %(chat_id)s::uuid
