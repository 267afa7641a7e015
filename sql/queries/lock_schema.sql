-- Keeps other services from applying schema files until the transaction ends.
SELECT pg_advisory_xact_lock(5703, 1)
