-- Lets the server end this transaction, and with it its lock, when its client has said nothing for 3 s: it may have gone.
SET LOCAL idle_in_transaction_session_timeout = '3s'
