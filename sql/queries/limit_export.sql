-- Lets this transaction's statement take as long as its reader.
SELECT set_config('statement_timeout', '0', true)
