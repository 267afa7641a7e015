-- Gives a page as one text of JSON, the id of its last message, whether more follow, and whether all of it is in the text.
-- The text stops at max_bytes of content; a larger page is to be streamed.
SELECT
    string_agg(message_json(message_id, chat_id, content, rating, sent_at, role), %(separator)s)
        FILTER (WHERE place <= %(limit)s AND bytes <= %(max_bytes)s),
    max(message_id::text) FILTER (WHERE place = %(limit)s),
    count(*) > %(limit)s,
    COALESCE(max(bytes) FILTER (WHERE place <= %(limit)s) <= %(max_bytes)s, TRUE)
FROM (
    SELECT
        message_id,
        chat_id,
        content,
        rating,
        sent_at,
        role,
        row_number() OVER () AS place,
        sum(octet_length(content)) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (
        SELECT *
        FROM messages
        WHERE {filters}
        ORDER BY seq {order}
        LIMIT %(limit)s + 1
    ) AS found
) AS page
