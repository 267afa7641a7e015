-- Keeps other services from applying schema files until the transaction ends; false where one of them is at it.
SELECT pg_try_advisory_xact_lock(5703, 1)
