"""Python `openai` on behalf of a WebRTC stack: hands in an offer, with a session or without, and hangs up."""

from typing import Any

import openai


async def talk(setup: dict[str, Any]) -> dict[str, Any]:
    base_url = setup["http"] + setup["openaiPath"]
    async with openai.AsyncOpenAI(base_url=base_url, api_key=setup["key"], max_retries=0) as client:
        session: Any = {"session": {"type": "realtime", "model": setup["model"]}} if setup["withSession"] else {}
        answer = await client.realtime.calls.with_raw_response.create(sdp=setup["offer"], **session)
        await client.realtime.calls.hangup(answer.headers["location"].rpartition("/")[2])
        return {"status": answer.status_code, "sdp": answer.text}
