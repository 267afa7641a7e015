-- Returns why the server can't do the work, or NULL: it must take writes, and have the schema.
SELECT CASE
    WHEN current_setting('transaction_read_only') = 'on' THEN 'the server is read-only'
    WHEN NOT EXISTS (SELECT FROM schema_files) THEN 'the server has no schema'
END
