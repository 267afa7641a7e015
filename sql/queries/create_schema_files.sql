-- Makes the list of applied schema files.
CREATE TABLE schema_files (
    name text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)
