"""The look whether the port is free."""

import errno
import socket

from persistence.web.env import SettingsError


def check_port(host: str, port: int) -> None:
    """Raise SettingsError where the address can't be listened on.

    The workers listen with SO_REUSEPORT, under which a second start on the same port would succeed, and a stranger's
    port make them die for ever; so it is tried once without.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except OSError as exc:
        is_host = isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL
        raise SettingsError(
            f"{'HOST' if is_host else 'PORT'}: can't listen on {host}:{port}: {exc.strerror or exc}"
        ) from None
