-- Gives how many schema files have been applied, so that the answer means that there is something to work with.
SELECT count(*)
FROM schema_files
