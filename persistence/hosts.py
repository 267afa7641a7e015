"""Where the database is: its hosts, which are tried one by one, those that have answered first."""

import logging
import os
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ConnectionTimeout

# the server gives up a statement before its client does, or what is given up goes on and holds its locks
LIMITS = "-c statement_timeout=6s -c lock_timeout=5s"

T = TypeVar("T")

log = logging.getLogger(__name__)


class Hosts:
    """The hosts of a connection string; `problem` says why there is no connection, where there is none."""

    def __init__(self, conninfo: str) -> None:
        given = conninfo_to_dict(conninfo)
        lists = {name: str(given[name]).split(",") for name in ("host", "hostaddr", "port") if given.get(name)}
        count = max(map(len, lists.values()), default=1)
        self._hosts = [
            {name: values[number % len(values)] for name, values in lists.items()} for number in range(count)
        ]
        self._own_options = str(given.get("options") or os.environ.get("PGOPTIONS", ""))
        self._options = f"{LIMITS} {self._own_options}"
        self._last, self._reported, self.problem = "", "", ""

    def connect(self, connect: Callable[..., T]) -> T:
        """Return what `connect` returns for the first host that takes a connection. Raises an OperationalError."""
        failures: list[str] = []
        for host in tuple(self._hosts):
            name = f"{host.get('host') or host.get('hostaddr') or 'the default host'}:{host.get('port') or 5432}"
            self.problem = "; ".join([*failures, f"{name} has not answered yet"])
            try:
                connection = self._connect_to(host, connect)
            except psycopg.OperationalError as exc:
                reason, _, _ = str(exc).partition("\n")
                failures.append(f"{name}: {reason}")
                if isinstance(exc, ConnectionTimeout):  # each try of it costs 2 s
                    self._move(host, len(self._hosts))
            else:
                self._move(host, 0)
                if self._reported or name != self._last:
                    log.info("The database is at %s", name)
                self._last, self._reported, self.problem = name, "", ""
                return connection
        self.problem = "; ".join(failures)
        if self._reported != self.problem:
            log.warning("No connection to the database: %s", self.problem)
        self._reported = self.problem
        raise psycopg.OperationalError(self.problem)

    def _move(self, host: dict[str, str], place: int) -> None:
        self._hosts.remove(host)
        self._hosts.insert(place, host)

    def _connect_to(self, host: dict[str, str], connect: Callable[..., T]) -> T:
        options = self._options
        try:
            return connect(**host, options=options)
        except psycopg.OperationalError as exc:
            if "startup parameter" not in str(exc) or options == self._own_options:
                raise
            # a pooler, which takes none: what would be set in its sessions would hold for others, too
            self._options = self._own_options
            return connect(**host, options=self._options)
