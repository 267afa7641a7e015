"""This service's settings."""

from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from persistence.web import auth, env
from persistence.web.env import SettingsError

API_KEY_FILE = Path("secrets/api_key.txt")


def read_keys() -> tuple[bytes, ...]:
    """Return the keys that callers may use. Raises SettingsError."""
    return auth.parse_keys(env.secret("API_KEY", API_KEY_FILE))


def _database_url() -> str | None:
    url = env.text("DATABASE_URL")
    if not url:
        return None
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:  # its text would repeat the URL, with the password in it
        raise SettingsError("DATABASE_URL must be a connection string or URL as libpq takes it") from None
    ports = str(given.get("port") or "5432").split(",")
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports if port):
        raise SettingsError("DATABASE_URL: its port must be a whole number from 1 to 65535")
    if len(ports) not in (1, len(str(given.get("hostaddr") or given.get("host")).split(","))):
        raise SettingsError("DATABASE_URL must name one port, or one for each host")
    return url


def _db_password() -> str | None:
    password = env.secret("DB_PASSWORD")
    if password == "":
        raise SettingsError("DB_PASSWORD must not be empty; unset it if the database asks for none")
    return password


@dataclass(frozen=True)
class Settings(env.ServerSettings):
    """How the persistence service is to run; the README's table says what each setting means."""

    api_keys: tuple[bytes, ...] = field(default_factory=read_keys, repr=False)
    database_url: str | None = field(default_factory=_database_url, repr=False)  # it may hold a password
    db_password: str | None = field(default_factory=_db_password, repr=False)
    data_dir: Path = field(default_factory=lambda: Path(env.text("DATA_DIR", ".data")))
    port: int = field(default_factory=lambda: env.number("PORT", 8000, 1, 65535))
    db_connections: int = field(default_factory=lambda: env.number("DB_CONNECTIONS", 8, 2, 256))
