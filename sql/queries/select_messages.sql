-- Returns a page as one text of JSON, the id of its last message, and whether more follow.
-- For a page of more than max_bytes of content, which is to be streamed, the numbers of its messages come instead.
SELECT
    string_agg(message_json(message_id, chat_id, content, rating, sent_at, role), %(separator)s ORDER BY place)
        FILTER (WHERE place <= %(limit)s AND page_bytes <= %(max_bytes)s),
    max(message_id::text) FILTER (WHERE place = %(limit)s),
    count(*) > %(limit)s,
    array_agg(seq) FILTER (WHERE place <= %(limit)s AND page_bytes > %(max_bytes)s)
FROM (
    SELECT
        seq,
        message_id,
        chat_id,
        content,
        rating,
        sent_at,
        role,
        row_number() OVER (ORDER BY seq {order}) AS place,
        sum(octet_length(content)) OVER () AS page_bytes
    FROM (
        SELECT *
        FROM messages
        WHERE {filters}
        ORDER BY seq {order}
        LIMIT %(limit)s + 1
    ) AS found
) AS page
