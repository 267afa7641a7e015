-- Returns the number of the server's process, which a pooler does not tell when it takes a connection.
SELECT pg_backend_pid()
