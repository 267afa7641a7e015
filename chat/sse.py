"""Server-sent events, as the WHATWG's HTML standard (section 9.2) has them."""

import json
from typing import Any

MEDIA_TYPE = "text/event-stream"
PING = b": ping\n\n"


def encode(event: str, data: str | dict[str, Any]) -> bytes:
    """Return one event; `data` is JSON on one line already, or becomes it."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event}\ndata: {text}\n\n".encode()
