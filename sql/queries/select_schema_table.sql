-- Returns the list of applied schema files as a table, or NULL if it is missing.
SELECT to_regclass('schema_files')
