"""The service that people would write instead: FastAPI, Pydantic, and SQLAlchemy's async session on psycopg.

It stands on the same tables, and promises less: writers disturb the order in a chat, and nothing has a limit of time.
"""

import os
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Response, Security
from fastapi.responses import StreamingResponse
from fastapi.security import APIKeyHeader
from pydantic import UUID4, AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter
from sqlalchemy import BigInteger, DateTime, Identity, Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Message(Base):
    __tablename__ = "messages"
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    message_id: Mapped[UUID] = mapped_column(primary_key=True)
    chat_id: Mapped[UUID]
    content: Mapped[str]
    rating: Mapped[bool | None]
    sent_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    role: Mapped[str]


class MessageModel(BaseModel):
    model_config = ConfigDict(from_attributes=True, extra="forbid")
    message_id: UUID4 = Field(default_factory=uuid4)
    chat_id: UUID4
    content: str = Field(min_length=1)
    rating: bool | None = None
    sent_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    role: Literal["ai", "human"]


class Rating(BaseModel):
    rating: bool | None


MESSAGES = TypeAdapter(list[MessageModel])
# libpq's variables say where it is; the ping is how a dead connection is found before it is used
engine = create_async_engine("postgresql+psycopg://", pool_size=8, max_overflow=0, pool_pre_ping=True)
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def check_key(key: Annotated[str, Security(APIKeyHeader(name="x-api-key"))]) -> None:
    if not secrets.compare_digest(key.encode(), os.environ["API_KEY"].encode()):
        raise HTTPException(401)


async def open_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


app = FastAPI()
router = APIRouter(prefix="/messages", dependencies=[Depends(check_key)])
Session = Annotated[AsyncSession, Depends(open_session)]


@app.get("/ready")
async def ready(session: Session) -> str:
    await session.execute(select(1))
    return "ok"


@router.post("/", status_code=201, response_model=MessageModel)
async def store(new: MessageModel, session: Session, response: Response) -> Message:
    message = Message(**new.model_dump())
    session.add(message)
    try:
        await session.commit()
    except IntegrityError:
        await session.rollback()
        message = await session.get_one(Message, new.message_id)
        if any(getattr(message, name) != getattr(new, name) for name in new.model_fields_set - {"rating"}):
            raise HTTPException(409) from None
        response.status_code = 200
    return message


@router.put("/{message_id}", response_model=MessageModel)
async def rate(message_id: UUID4, change: Rating, session: Session) -> Message:
    message = await session.get(Message, message_id)
    if message is None:
        raise HTTPException(404)
    message.rating = change.rating
    await session.commit()
    return message


@router.get("/", response_model=list[MessageModel])
async def list_messages(
    session: Session,
    chat_id: UUID4 | None = None,
    order: Literal["asc", "desc"] = "asc",
    limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
) -> object:
    statement = select(Message).order_by(Message.seq.desc() if order == "desc" else Message.seq)
    if chat_id is not None:
        statement = statement.where(Message.chat_id == chat_id)
    if limit is None:
        return StreamingResponse(export(statement), media_type="application/json")
    return (await session.scalars(statement.limit(limit))).all()


async def export(statement: Select[Message]) -> AsyncIterator[bytes]:
    separator = b"["
    async with sessions() as session:
        found = await session.stream_scalars(statement.execution_options(yield_per=1000))
        async for batch in found.partitions():
            yield separator + MESSAGES.dump_json(MESSAGES.validate_python(batch))[1:-1]
            separator = b","
    yield b"]" if separator == b"," else b"[]"


app.include_router(router)
