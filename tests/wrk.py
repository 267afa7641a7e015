"""Load by Debian's wrk: a number of connections, each of which sends its next request when the last one is answered."""

import json
import subprocess
import uuid
from pathlib import Path
from typing import NamedTuple

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
local threads = {{}}
unfit = 0
setup = function(thread) table.insert(threads, thread) end
request = function() return wrk.format({request}) end
init = function(arguments)
  local connections, spread, begun = tonumber(arguments[1]), tonumber(arguments[2]) * 1000, 0
  if spread > 0 then
    delay = function()  -- in milliseconds, before each request
      begun = begun + 1
      return begun <= connections and begun / connections * spread or 0
    end
  end
end
{check}
done = function(summary, latency)
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  for _, thread in ipairs(threads) do failed = failed + thread:get("unfit") end
  io.write(string.format(
    'RESULT {{"answered": %d, "failed": %d, "mean": %f, "longest": %f}}\\n',
    summary.requests, failed + summary.errors.status, latency.mean / 1e6, latency.max / 1e6
  ))
end
"""
WHOLE_TURN = """
response = function(status, headers, body)
  local _, deltas = body:gsub("event: delta", "")
  if deltas < 20 or not body:find("event: reply", 1, true) then unfit = unfit + 1 end
end
"""
BODY = (
    """'{"message_id":"' .. uuid() .. '","chat_id":"' .. chat() .. '","content":"'"""
    f""" .. '{CONTENT}' .. '","role":"human","rating":null,"sent_at":"2026-11-23T16:04:05.12Z"}}'"""
)


class Result(NamedTuple):
    """How many were answered, how many failed, and how long the mean and the longest answer took, in seconds."""

    answered: int
    failed: int
    mean: float
    longest: float


class Load:
    """Requests to `url`: `request` is the arguments of wrk.format, in Lua; `check` counts what is `unfit`, in Lua;
    chat() is the id of one of so many `chats`."""

    def __init__(self, url: str, request: str, folder: Path, check: str = "", chats: int = CHATS) -> None:
        self.url = url
        self.script = folder / f"{uuid.uuid4().hex}.lua"
        self.script.write_text(LUA.format(chat=CHAT, chats=chats, key=KEY, request=request, check=check))

    def run(self, connections: int, seconds: int, spread: float = 0.0) -> Result:
        """Keep up the load for so many seconds; the connections begin one after another, over `spread` seconds."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "90s", "-s", self.script, self.url]
        command += ["--", connections, spread]
        output = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
        line = next(line for line in output.splitlines() if line.startswith("RESULT "))
        return Result(**json.loads(line.removeprefix("RESULT ")))
