"""A start tells of a transcription model that GA does not take."""

import json
from pathlib import Path

import pytest

from tests.support.broker import environment, plain_client, run_process
from token_broker.simulator import serve


@pytest.mark.parametrize(("model", "told"), [("whisper-1", ["whisper-1"]), ("gpt-4o-mini-transcribe", [])])
async def test_start_warns_of_classic_whisper(model: str, told: list[str], tmp_path: Path) -> None:
    async with serve() as azure:
        env = environment(tmp_path, azure.base_url, AZURE_VOICELIVE_TRANSCRIPTION_MODEL=model)
        async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
            assert (await client.post("/realtime/token", json={})).status_code == 200
            lines = [json.loads(line) for line in process.log.splitlines() if "transcription_model_not_on_ga" in line]
            assert [line["model"] for line in lines] == told
            assert {line["level"] for line in lines} <= {"warning"}
