-- Returns a page of chats as rows of JSON and id, the one with the message stored last first, one more than asked for.
SELECT
    concat(
        '{"chat_id":"', page.chat_id,
        '","message_count":', page.message_count,
        ',"first_sent_at":"', rfc3339(first_message.sent_at),
        '","last_sent_at":"', rfc3339(last_message.sent_at),
        '","title":', COALESCE(to_json(one_line.title)::text, 'null'), '}'
    ),
    page.chat_id::text
FROM (
    SELECT *
    FROM chats
    WHERE last_seq < %(before)s
    ORDER BY last_seq DESC
    LIMIT %(limit)s + 1
) AS page
JOIN messages AS first_message ON first_message.seq = page.first_seq
JOIN messages AS last_message ON last_message.seq = page.last_seq
LEFT JOIN messages AS human_message ON human_message.seq = page.first_human_seq
-- white space and line breaks, those of other scripts included, become one space
CROSS JOIN LATERAL (
    SELECT rtrim(left(ltrim(regexp_replace(
        left(ltrim(human_message.content, E' \t\r\n'), 1000), '[\s\x1c-\x1f\u0085\u2028\u2029]+', ' ', 'g'
    )), 80)) AS title
) AS one_line
ORDER BY page.last_seq DESC
