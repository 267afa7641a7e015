-- Makes the role that the service logs in as: it owns its own schema, and nothing else. psql reads the password itself,
-- so that no command line shows it.
\set password `cat /run/secrets/db_password`
CREATE ROLE persistence LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'password';
REVOKE ALL ON DATABASE messages, postgres, template1 FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CONNECT ON DATABASE messages TO persistence;
CREATE SCHEMA persistence AUTHORIZATION persistence;
ALTER ROLE persistence SET search_path = persistence;
