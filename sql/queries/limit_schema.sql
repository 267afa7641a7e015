-- Lets a schema file take its time, but ends the wait for the lock, and the transaction of a client that has gone.
SELECT
    set_config('statement_timeout', '0', true),
    set_config('lock_timeout', '3s', true),
    set_config('idle_in_transaction_session_timeout', '3s', true)
