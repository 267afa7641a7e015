-- Marks turns as at work at a worker, those apart that another one has renewed in the last 20 s; returns those marked.
-- Old marks are cleared in passing, but for those that other requests clear. They are found by the index: it takes a
-- STABLE time, and an order, as the table is too young for statistics.
WITH cleared AS (
    DELETE FROM turns
    WHERE message_id = ANY(ARRAY(
        SELECT message_id
        FROM turns
        WHERE renewed_at < statement_timestamp() - interval '60 seconds'
            AND message_id <> ALL(%(message_ids)s::uuid[])
        ORDER BY renewed_at
        LIMIT 100
        FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO turns (
    message_id,
    worker_id,
    renewed_at
)
SELECT DISTINCT ON (message_id)
    message_id,
    %(worker_id)s::uuid,
    clock_timestamp()
FROM unnest(%(message_ids)s::uuid[]) AS message_id
ORDER BY message_id
ON CONFLICT (message_id) DO UPDATE SET
    worker_id = EXCLUDED.worker_id,
    renewed_at = EXCLUDED.renewed_at
WHERE turns.worker_id = EXCLUDED.worker_id
    OR turns.renewed_at < clock_timestamp() - interval '20 seconds'
RETURNING message_id::text
