-- Returns whether the server takes writes and has the schema.
SELECT current_setting('transaction_read_only') = 'off' AND EXISTS (SELECT FROM schema_files)
