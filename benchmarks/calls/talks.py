"""Many simulated talks over all transports with random ends: is each in the ledger, exactly, and is each call over?

    python -m benchmarks.calls.talks [--talks 1000] [--at-once 40] [--kills 2]

Two brokers on one PostgreSQL, and an Azure whose calls have no media (`benchmarks.calls.stage`). Each talk goes over
one transport: relayed, attached, the proxy, a call or a socket of an official client. It ends by a hang-up, by a tab
that is killed (Azure closes the call), by its own limit (`max_session_s`), or by its principal's budget of tokens.
Meanwhile brokers are killed and replaced.

Exit code 1 unless, at the end, each talk that went live is in the ledger once; the tokens of each are what Azure told
its listeners, and its seconds what it lasted; no place is taken; and 10 s after the last leash was pulled no call is
alive. What a talk of a killed broker lacks is accepted where its row says that it is incomplete: the last seconds of a
proxied talk, and of a call that Azure ended before another broker had it. Nothing may be too much.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr
from sqlalchemy import Connection, select
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from benchmarks.calls.handover import until
from benchmarks.calls.stage import FakeTalk, Stage, call_stage
from tests.support.broker import BrokerProcess
from tests.support.offers import OFFER
from token_broker.memory.drivers.connect import connect as open_database
from token_broker.memory.store.tables import calls, usage
from token_broker.usage.rows import sum_usage

TRANSPORTS = ("webrtc_relay", "webrtc", "websocket_proxy", "compat_call", "compat_socket")
SOCKETS = ("websocket_proxy", "compat_socket")
ENDS = ("hang_up", "killed_tab", "limit", "budget")
TALK_S = (4.0, 12.0)
LIMIT_S = 10  # the least that a request may ask for
BUDGET_TOKENS = 12_000
LEASH_S = 10.0
OFF_S = 2.0
UNWRITTEN_S = 15.0
RENEWED_S = 1.5  # a killed broker's lease was renewed so long before
SHOWN = 20
SILENCES = frozenset({"call_leases_unrenewed", "usage_unwritten", "budgets_unsettled"})
ABOUT = ("event", "reason", "why", "outcome", "epoch", "left_s", "calls", "do")
T = TypeVar("T")
_ANSWER = re.compile(r"resp_(ws_\d+)_")
DIRECT = "/openai/v1/realtime/calls"


@dataclass
class Talked:
    """A talk that went live. `azure` is what Azure has of it; None where the talk's own name is not known."""

    session_id: str
    transport: str
    end: str
    azure: FakeTalk
    broker: BrokerProcess


class Talks:
    """Runs them on a stage, and judges what is left."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.talked: list[Talked] = []
        self.failed: Counter[str] = Counter()
        self.killed_s: dict[str, float] = {}  # when, in seconds since 1970, by a broker's address
        self._number = 0

    def broker(self) -> BrokerProcess:
        return random.choice([each for each in self.stage.replicas.running if each.base_url not in self.killed_s])

    async def run(self) -> None:
        """One talk, from its plan to its end."""
        self._number += 1
        address = f"10.{self._number >> 16}.{self._number >> 8 & 255}.{self._number & 255}"
        transport, end = random.choice(TRANSPORTS), random.choice(ENDS)
        body: dict[str, Any] = {"max_session_s": LIMIT_S} if end == "limit" else {}
        try:
            broker = self.broker()
            if transport.startswith("compat"):
                await self._official(broker, address, body, transport, end)
                return
            mine, plan = await self.stage.plan(broker, address, **body)
            if transport == "websocket_proxy":
                proxy = plan["connections"][-1]
                protocols = [Subprotocol(name) for name in proxy["protocols"]]
                via = {"X-Forwarded-For": mine["X-Forwarded-For"]}  # whose budget it is
                await self._speak(broker, proxy["url"], via, protocols, (plan["session_id"], transport, end))
            else:
                await self._call(broker, mine, plan, transport, end)
        except (httpx.HTTPError, OSError, WebSocketException, TimeoutError, KeyError) as error:
            answer = error.response.text if isinstance(error, httpx.HTTPStatusError) else ""
            code = re.search(r'"code":"(\w+)"', answer)
            self.failed[code[1] if code else type(error).__name__] += 1

    async def _call(
        self, broker: BrokerProcess, mine: dict[str, str], plan: dict[str, Any], transport: str, end: str
    ) -> None:
        post = self.stage.client.post
        if transport == "webrtc_relay":
            offer = {**mine, "Content-Type": "application/sdp"}
            placed = await post(f"{broker.base_url}/realtime/calls", content=OFFER, headers=offer)
            placed.raise_for_status()
            path = placed.headers["location"]
            name = azure_name(path.rpartition("/")[2])
        else:
            direct = next(each for each in plan["connections"] if each["transport"] == "webrtc")
            offer = {"Authorization": f"Bearer {direct['token']}", "Content-Type": "application/sdp"}
            made = await post(f"{self.stage.azure.url}{DIRECT}", content=OFFER, headers=offer)
            name = made.headers["location"].rpartition("/")[2]
            attached = await post(f"{broker.base_url}/realtime/calls/attach", json={"call_id": name}, headers=mine)
            attached.raise_for_status()
            path = f"/realtime/calls/{attached.json()['call_id']}"
        talk = self.stage.azure.talks[name]
        self.talked.append(Talked(plan["session_id"], transport, end, talk, broker))
        await self._end_call(talk, end, "DELETE", path, mine)

    async def _official(
        self, broker: BrokerProcess, address: str, metadata: dict[str, Any], transport: str, end: str
    ) -> None:
        """A talk of an official client, with a client secret."""
        via = {"X-Forwarded-For": address}
        mint = f"{broker.base_url}/v1/realtime/client_secrets"
        minted = await self.stage.client.post(mint, json={"metadata": metadata}, headers=via)
        minted.raise_for_status()
        secret = minted.json()
        session_id, mine = secret["session"]["id"], {"Authorization": f"Bearer {secret['value']}", **via}
        if transport == "compat_socket":
            url = f"{broker.base_url.replace('http', 'ws', 1)}/v1/realtime?model=gpt-realtime"
            await self._speak(broker, url, mine, None, (session_id, transport, end))
            return
        offer = {**mine, "Content-Type": "application/sdp"}
        placed = await self.stage.client.post(f"{broker.base_url}/v1/realtime/calls", content=OFFER, headers=offer)
        placed.raise_for_status()
        path = placed.headers["location"]
        talk = self.stage.azure.talks[azure_name(path.rpartition("/")[2])]
        self.talked.append(Talked(session_id, transport, end, talk, broker))
        await self._end_call(talk, end, "POST", f"{path}/hangup", mine)

    async def _end_call(self, talk: FakeTalk, end: str, method: str, path: str, mine: dict[str, str]) -> None:
        await asyncio.sleep(random.uniform(*TALK_S))
        if end == "hang_up":
            async with asyncio.timeout(30):
                while talk.lives:
                    with contextlib.suppress(httpx.HTTPError):
                        await self.stage.client.request(method, f"{self.broker().base_url}{path}", headers=mine)
                    await asyncio.sleep(0.5)
        elif end == "killed_tab":
            talk.end()
        else:
            async with asyncio.timeout(90):
                await talk.over.wait()

    async def _speak(
        self,
        broker: BrokerProcess,
        url: str,
        headers: dict[str, str],
        protocols: list[Subprotocol] | None,
        about: tuple[str, str, str],
    ) -> None:
        """A talk over a socket; `about` are its session, its transport and how it ends."""
        session_id, transport, end = about
        options: dict[str, Any] = {"proxy": None, "compression": None, "max_size": None, "additional_headers": headers}
        async with connect(url, subprotocols=protocols, **options) as socket:
            async with asyncio.timeout(30):  # an answer's id has the name of Azure's session
                while (named := _ANSWER.search(str(await socket.recv()))) is None:
                    pass
            self.talked.append(Talked(session_id, transport, end, self.stage.azure.talks[named[1]], broker))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(*TALK_S) if end in ENDS[:2] else 90):
                    async for _ in socket:
                        pass

    async def kill(self) -> None:
        """Kills a broker, and starts another in its place."""
        dying = self.broker()
        await self.stage.replicas.start()
        self.killed_s[dying.base_url] = time.time()
        dying.process.send_signal(signal.SIGKILL)
        await dying.process.wait()

    async def judge(self) -> int:
        """Prints what is left, and how many faults that is."""
        await until(lambda: not self.stage.azure.live(), within_s=LEASH_S)
        alive = sum(each.azure.lives for each in self.talked)
        unanswered = len(self.stage.azure.live()) - alive  # its broker was killed before it had stored its row
        await asyncio.sleep(16)  # what is written every 15 s
        places = 0.0
        for broker in self.stage.replicas.running:
            if broker.base_url not in self.killed_s:
                text = (await self.stage.client.get(f"{broker.base_url}/metrics")).text
                line = next(line for line in text.splitlines() if line.startswith("token_broker_open_talks "))
                places += float(line.split()[1])
        rows = await self._ledger()
        excepted: Counter[str] = Counter()
        off: list[tuple[Talked, str]] = []
        for each in self.talked:
            for what, fault in self._compared(each, rows.get(each.session_id)):
                excepted[what] += not fault
                off += [(each, fault)] if fault else []
        ends = Counter(row["ended"] for row in rows.values())
        print(f"{len(self.talked)} talks went live ({dict(Counter(each.transport for each in self.talked))}),")
        print(f"  {sum(self.failed.values())} did not ({dict(self.failed)}); {len(self.killed_s)} brokers were killed")
        print(f"ledger: {len(rows)} talks, ends {dict(ends)}")
        print(f"  {len(off)} faults; incomplete after a kill, and said to be: {dict(+excepted)}")
        stored = await self._stored()
        off += [(each, "alive") for each in self.talked if each.azure.lives]
        for broker in self.stage.replicas.running if off else ():
            warnings = Counter(entry["event"] for entry in entries_of(broker) if entry["level"] != "info")
            print(f"  {broker.base_url} warned of {dict(warnings)}")
        for each, why in off[:SHOWN]:
            print(f"  {each.transport}, {each.end}: {why}")
            self._tell(each, stored.get(each.session_id, []))
        print(f"places taken at the end: {places:.0f}; calls alive {LEASH_S:.0f} s after the last leash: {alive},")
        print(f"  and {unanswered} that no client could connect to: it never had the answer")
        return len(off) + int(places)

    def _may_have_been_killed(self, talked: Talked) -> bool:
        """Whether a broker that heard it may have been killed: a call may have gone to that one meanwhile."""
        if talked.transport in SOCKETS:
            return talked.broker.base_url in self.killed_s
        began_s, ended_s = talked.azure.notes[0][0], talked.azure.notes[-1][0]
        return any(began_s <= at_s <= ended_s + LEASH_S for at_s in self.killed_s.values())

    def _compared(self, talked: Talked, row: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
        """What the ledger has otherwise than Azure, and the fault; no fault where nobody but Azure can know it."""
        if row is None or (row["live_ms"] is None and talked.azure.joined_s is not None):
            yield "row", "missing" if row is None else "unseen"
            return
        azure, is_said = talked.azure, not row["complete"] and self._may_have_been_killed(talked)
        tokens = (row["input_tokens"] or 0) + (row["output_tokens"] or 0)
        if tokens != azure.heard:
            yield "tokens", "" if is_said and tokens < azure.heard else f"{tokens} tokens instead of {azure.heard}"
        began_s, ended_s = azure.joined_s or azure.made_s, azure.ended_s or time.monotonic()
        least_s = azure.heard_until_s or ended_s
        if talked.transport in SOCKETS:
            least_s -= UNWRITTEN_S  # its process writes every 15 s, and it dies with that
        has_s = (row["live_ms"] or 0) / 1000
        if abs(has_s - (ended_s - began_s)) > OFF_S:
            is_within = least_s - began_s - RENEWED_S - OFF_S <= has_s <= ended_s - began_s + OFF_S
            fault = f"{has_s:.1f} s instead of {ended_s - began_s:.1f} s, ended {row['ended']}"
            yield "seconds", "" if is_said and is_within else fault

    def _tell(self, talked: Talked, stored: list[tuple[float, str]]) -> None:
        """Prints what is known of one talk in the order of time: by Azure, the store, the brokers' logs."""
        told = [(at_s, f"Azure: {what}") for at_s, what in talked.azure.notes] + stored
        told += [(at_s, f"killed: {address}") for address, at_s in self.killed_s.items()]
        for broker in self.stage.replicas.running:
            for entry in entries_of(broker):
                if entry.get("session_id") == talked.session_id or entry["event"] in SILENCES:
                    at_s = datetime.fromisoformat(entry["timestamp"]).timestamp()
                    about = {name: value for name, value in entry.items() if name in ABOUT}
                    told.append((at_s, f"{broker.base_url}: {about}"))
        for at_s, what in sorted(told):
            print(f"    {at_s - talked.azure.notes[0][0]:7.2f} {what}")

    async def _ledger(self) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        for row in await self._read(sum_usage):
            whole = rows.setdefault(row["session_id"], dict(row))
            if whole is not row and whole != row:
                for name in ("input_tokens", "output_tokens", "live_ms"):
                    whole[name] = (whole[name] or 0) + (row[name] or 0)
                whole["complete"] = min(whole["complete"], row["complete"])
                whole["ended"] = whole["ended"] or row["ended"]
        return rows

    async def _stored(self) -> dict[str, list[tuple[float, str]]]:
        """Rows by session, each by the time of its last writing."""

        def read(connection: Connection) -> list[tuple[str, int, str]]:
            parts = connection.execute(select(usage)).mappings()
            shown = ("part", "seen", "complete", "ended", "live_ms", "input_tokens", "output_tokens", "started_at_us")
            found = [
                (row["session_id"], row["updated_at_us"], f"usage: { {name: row[name] for name in shown} }")
                for row in parts
            ]
            of_call = ("holder", "state", "ending", "lease_epoch", "created_at_us", "over_at_us", "unheard_since_us")
            for row in connection.execute(select(calls)).mappings():
                about = f"call: { {name: row[name] for name in of_call} }"
                found.append((row["session_id"], row["lease_until_us"], about))
            return found

        stored: dict[str, list[tuple[float, str]]] = {}
        for session_id, at_us, what in await self._read(read):
            stored.setdefault(session_id, []).append((at_us / 1_000_000, what))
        return stored

    async def _read(self, work: Callable[[Connection], list[T]]) -> list[T]:
        database = open_database(SecretStr(self.stage.database_url), timeout_s=30, patience_s=30)
        await database.open()
        try:
            return await database.read(work, pool="bulk")
        finally:
            await database.close()


def entries_of(broker: BrokerProcess) -> list[dict[str, Any]]:
    """Its log; what is no JSON is left out."""
    return [json.loads(line) for line in broker.log.splitlines() if line.startswith("{")]


def azure_name(token: str) -> str:
    """Azure's id of a call, which its shown id carries."""
    part = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return next(str(value) for value in claims.values() if str(value).startswith("rtc_"))


async def main(talks: int, at_once: int, kills: int) -> int:
    budget = {"BROKER_BUDGET_TOKENS_PER_DAY": str(BUDGET_TOKENS), "BROKER_UNSEEN_TALKS": "allow"}
    with tempfile.TemporaryDirectory() as folder:
        async with call_stage(Path(folder), every_s=2.0, replicas=2, **budget) as stage:
            run, gate, done = Talks(stage), asyncio.Semaphore(at_once), 0

            async def one() -> None:
                nonlocal done
                async with gate:
                    await run.run()
                    done += 1

            def is_done(share: int) -> bool:
                return done >= share

            running = [asyncio.create_task(one()) for _ in range(talks)]
            for number in range(kills):
                await until(partial(is_done, (number + 1) * talks // (kills + 1)), within_s=3600)
                await run.kill()
            await asyncio.gather(*running)
            return int(await run.judge() > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--talks", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=40)
    parser.add_argument("--kills", type=int, default=2)
    chosen = parser.parse_args()
    sys.exit(asyncio.run(main(chosen.talks, chosen.at_once, chosen.kills)))
