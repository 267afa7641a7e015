-- Notes that a schema file has been applied.
INSERT INTO schema_files (name)
VALUES (%(name)s)
