"""The same service as fast as Python gets: FastAPI on raw asyncpg, and orjson.

It stands on the same tables, and promises less: writers disturb the order in a chat, and nothing has a limit of time.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

import asyncpg
import orjson
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Response, Security
from fastapi.responses import StreamingResponse
from fastapi.security import APIKeyHeader
from pydantic import UUID4, AwareDatetime, BaseModel, ConfigDict, Field

FIELDS = "message_id, chat_id, content, rating, sent_at, role"
GIVEN = "message_id::text, chat_id::text, content, rating, sent_at, role"  # orjson takes no UUID of asyncpg's
STORE = f"INSERT INTO messages ({FIELDS}) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING {GIVEN}"
SAME = "message_id = $1 AND chat_id = $2 AND content = $3 AND role = $4 AND sent_at = coalesce($5, sent_at)"
READ = f"SELECT {GIVEN} FROM messages WHERE {SAME}"
RATE = f"UPDATE messages SET rating = $2 WHERE message_id = $1 RETURNING {GIVEN}"
EXPORT = f"SELECT {GIVEN} FROM messages ORDER BY seq"
PAGES = {
    order: f"SELECT {GIVEN} FROM messages WHERE chat_id = $1 ORDER BY seq {order} LIMIT $2" for order in ("asc", "desc")
}


class NewMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    message_id: UUID4 = Field(default_factory=uuid4)
    chat_id: UUID4
    content: str = Field(min_length=1)
    rating: bool | None = None
    sent_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    role: Literal["ai", "human"]


class Rating(BaseModel):
    rating: bool | None


async def keep(_connection: Any) -> None:
    """Leave a connection as it is when it goes back to the pool: a clean one costs a round trip more."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(min_size=8, max_size=8, reset=keep) as app.state.pool:  # where libpq's variables say
        yield


async def check_key(key: Annotated[str, Security(APIKeyHeader(name="x-api-key"))]) -> None:
    if not secrets.compare_digest(key.encode(), os.environ["API_KEY"].encode()):
        raise HTTPException(401)


app = FastAPI(lifespan=lifespan)
router = APIRouter(prefix="/messages", dependencies=[Depends(check_key)])


def answer(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value, default=dict), status, media_type="application/json")


@app.get("/ready")
async def ready() -> str:
    await app.state.pool.fetchval("SELECT 1")
    return "ok"


@router.post("/")
async def store(new: NewMessage) -> Response:
    values = new.message_id, new.chat_id, new.content, new.rating, new.sent_at, new.role
    if stored := await app.state.pool.fetchrow(STORE, *values):
        return answer(stored, 201)
    sent_at = new.sent_at if "sent_at" in new.model_fields_set else None
    if stored := await app.state.pool.fetchrow(READ, new.message_id, new.chat_id, new.content, new.role, sent_at):
        return answer(stored)
    raise HTTPException(409)


@router.put("/{message_id}")
async def rate(message_id: UUID4, change: Rating) -> Response:
    if stored := await app.state.pool.fetchrow(RATE, message_id, change.rating):
        return answer(stored)
    raise HTTPException(404)


@router.get("/")
async def list_messages(
    chat_id: UUID4 | None = None,
    order: Literal["asc", "desc"] = "asc",
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    if chat_id is None:
        return StreamingResponse(export(), media_type="application/json")
    return answer(await app.state.pool.fetch(PAGES[order], chat_id, limit))


async def export() -> AsyncIterator[bytes]:
    separator = b"["
    async with app.state.pool.acquire() as connection, connection.transaction():
        cursor = await connection.cursor(EXPORT)
        while batch := await cursor.fetch(1000):
            yield separator + orjson.dumps(batch, default=dict)[1:-1]
            separator = b","
    yield b"]" if separator == b"," else b"[]"


app.include_router(router)
