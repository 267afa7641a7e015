-- Which worker of the chat service is at work on which turn. UNLOGGED: after a crash of the database, none is.
CREATE UNLOGGED TABLE turns (
    message_id uuid PRIMARY KEY,
    worker_id uuid NOT NULL,
    renewed_at timestamptz NOT NULL
);

CREATE INDEX turns_renewed_at ON turns (renewed_at);
