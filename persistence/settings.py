"""This service's settings."""

from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from persistence.web import auth, env
from persistence.web.env import SettingsError

API_KEY_FILE = Path("secrets/api_key.txt")


@dataclass(frozen=True)
class Settings:
    """How the persistence service is to run; the README's table says what each setting means."""

    api_keys: tuple[bytes, ...] = field(repr=False)
    database_url: str | None = field(default=None, repr=False)  # it may hold a password
    db_password: str | None = field(default=None, repr=False)
    data_dir: Path = Path(".data")
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 2  # for two cores, shared with PostgreSQL
    db_connections: int = 8
    graceful_timeout: int = 30  # seconds


def load_keys() -> tuple[bytes, ...]:
    """Return the keys that callers may use. Raises SettingsError."""
    return auth.parse_keys(env.secret("API_KEY", API_KEY_FILE))


def load() -> Settings:
    """Return the settings from the environment. Raises SettingsError."""
    database_url = env.text("DATABASE_URL") or None
    if database_url is not None:
        try:
            given = conninfo_to_dict(database_url)
        except psycopg.Error:  # its text would repeat the URL, with the password in it
            raise SettingsError("DATABASE_URL must be a connection string or URL as libpq takes it") from None
        ports = str(given.get("port") or "5432").split(",")
        if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports if port):
            raise SettingsError("DATABASE_URL: its port must be a whole number from 1 to 65535")
        if len(ports) not in (1, len(str(given.get("hostaddr") or given.get("host")).split(","))):
            raise SettingsError("DATABASE_URL must name one port, or one for each host")
    db_password = env.secret("DB_PASSWORD")
    if db_password == "":
        raise SettingsError("DB_PASSWORD must not be empty; unset it if the database asks for none")
    return Settings(
        api_keys=load_keys(),
        database_url=database_url,
        db_password=db_password,
        data_dir=Path(env.text("DATA_DIR", ".data")),
        host=env.text("HOST", Settings.host),
        port=env.number("PORT", Settings.port, 1, 65535),
        workers=env.number("WEB_CONCURRENCY", Settings.workers, 1, 64),
        db_connections=env.number("DB_CONNECTIONS", Settings.db_connections, 2, 256),
        graceful_timeout=env.number("GRACEFUL_TIMEOUT", Settings.graceful_timeout, 1, 3600),
    )
