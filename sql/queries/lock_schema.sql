-- Waits until no other service applies schema files, and keeps others out until the transaction ends.
SELECT pg_advisory_xact_lock(5703, 1)
