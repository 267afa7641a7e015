-- Lets the server give up a statement before its client does, or what is given up goes on and holds its locks.
SELECT
    set_config('statement_timeout', '6s', false),
    set_config('lock_timeout', '5s', false)
