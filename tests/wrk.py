"""Load by Debian's wrk: a number of connections, each of which sends its next request when the last one is answered."""

import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.services import KEY

CHATS = 5000
CONTENT = "abcdefghij" * 20
CHAT = "7c9e6679-7425-40de-944b-"  # and twelve hexadecimal digits: the chat's number
LUA = """
math.randomseed(os.time())
local function hex(n) return string.format("%0" .. n .. "x", math.random(0, 16 ^ n - 1)) end
local function uuid() return hex(8) .. "-" .. hex(4) .. "-4" .. hex(3) .. "-a" .. hex(3) .. "-" .. hex(6) .. hex(6) end
local function chat() return "{chat}" .. string.format("%012x", math.random(0, {chats} - 1)) end
local headers = {{["x-api-key"] = "{key}", ["content-type"] = "application/json"}}
local ids = {{{ids}}}
local last, rated = 1, {{}}
local function id() last = math.random(1, #ids) return ids[last] end
local function rating() rated[last] = not rated[last] return tostring(rated[last]) end
request = function() return wrk.format({request}) end
if {pause} > 0 then delay = function() return {pause} end end
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    "RESULT %d %d %f\\n", summary.requests,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status, latency:percentile(99) / 1000
  ))
end
"""
MESSAGE = (
    """'{"message_id":"' .. uuid() .. '","chat_id":"' .. chat() .. '","content":"'"""
    f""" .. '{CONTENT}' .. '","role":"human","rating":null,"sent_at":"2026-11-23T16:04:05.12Z"}}'"""
)
POST = f"'POST', '/messages/', headers, {MESSAGE}"


class Load:
    """Requests to `url`: `request` is the arguments of wrk.format, in Lua, where id() is one of `ids`, rating()
    a change for it, and chat() one of the CHATS; each connection makes a `pause`, in ms, before each request."""

    def __init__(self, url: str, request: str, folder: Path, ids: Sequence[str] = (), pause: int = 0) -> None:
        self.url = url
        self.script = folder / f"{uuid.uuid4().hex}.lua"
        quoted = ",".join(f"'{one}'" for one in ids)
        self.script.write_text(LUA.format(chat=CHAT, chats=CHATS, key=KEY, ids=quoted, request=request, pause=pause))

    def run(self, connections: int, seconds: int) -> tuple[int, int, float]:
        """Keep up the load; return how many were answered, how many failed, and in what time 99 % were, in ms."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "90s", "-s", self.script, self.url]
        output = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
        answered, failed, p99 = next(line.split()[1:] for line in output.splitlines() if line.startswith("RESULT "))
        return int(answered), int(failed), float(p99)
