-- Makes the list of applied schema files where it is missing.
CREATE TABLE IF NOT EXISTS schema_files (
    name text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)
