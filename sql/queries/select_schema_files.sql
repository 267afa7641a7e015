-- Returns the names of the schema files that have been applied.
SELECT name
FROM schema_files
