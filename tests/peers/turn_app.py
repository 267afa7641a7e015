"""A chat in front of a model as it is often written: FastAPI, AsyncOpenAI, and httpx to the service that stores.

It promises less: a turn whose caller hangs up is lost, one sent again is paid again, and nothing fills a silence.
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import uuid4

import httpx
from fastapi import FastAPI, HTTPException, Security
from fastapi.responses import StreamingResponse
from fastapi.security import APIKeyHeader
from openai import AsyncOpenAI
from pydantic import UUID4, BaseModel, Field

app = FastAPI()
persistence = httpx.AsyncClient(base_url=os.environ["API_BASE_URL"], timeout=60)
model = AsyncOpenAI(api_key="none")  # OPENAI_BASE_URL says where it is


class NewTurn(BaseModel):
    content: str = Field(min_length=1)
    chat_id: UUID4 | None = None
    stream: bool = True


@app.get("/ready")
async def ready() -> str:
    return "ok"


async def store(key: str, chat_id: str, role: str, content: str) -> Any:
    message = {"chat_id": chat_id, "role": role, "content": content}
    response = await persistence.post("/messages/", json=message, headers={"x-api-key": key})
    if response.status_code != 201:
        raise HTTPException(response.status_code, response.json())
    return response.json()


@app.post("/chat")
async def chat(turn: NewTurn, key: Annotated[str, Security(APIKeyHeader(name="x-api-key"))]) -> StreamingResponse:
    chat_id, earlier = str(turn.chat_id or uuid4()), []
    if turn.chat_id:
        query = {"chat_id": chat_id, "order": "desc", "limit": "50"}
        response = await persistence.get("/messages/", params=query, headers={"x-api-key": key})
        earlier = response.raise_for_status().json()[::-1]
    message = await store(key, chat_id, "human", turn.content)
    return StreamingResponse(answer(key, message, earlier), media_type="text/event-stream")


async def answer(key: str, message: Any, earlier: list[Any]) -> AsyncIterator[str]:
    yield event("message", message)
    roles = {"ai": "assistant", "human": "user"}
    prompt: Any = [{"role": roles[one["role"]], "content": one["content"]} for one in [*earlier, message]]
    pieces = []
    stream = await model.chat.completions.create(model="gpt-4o-mini", messages=prompt, stream=True)
    async for chunk in stream:
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            pieces.append(piece)
            yield event("delta", {"content": piece})
    yield event("reply", await store(key, message["chat_id"], "ai", "".join(pieces)))


def event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
