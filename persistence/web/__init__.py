"""What both services stand on: settings, keys, errors, logs, documentation and the server. Knows no database."""
