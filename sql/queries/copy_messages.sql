-- Streams messages as JSON, one a row. JSON holds neither byte 1 nor byte 2, so that nothing is ever quoted.
COPY (
    SELECT message_json(message_id, chat_id, content, rating, sent_at, role)
    FROM messages
    WHERE {filters}
    ORDER BY seq {order}
) TO STDOUT (FORMAT csv, DELIMITER E'\x01', QUOTE E'\x02')
