"""Whether the database can be used and has the right tables, and whether each sink takes what it will be sent."""

import asyncio
import os
import re
import secrets
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from sqlalchemy.engine import make_url

from strategies.outbound_proxy import ProxyFailedError
from token_broker.doctor.checks import Check, CheckStatus
from token_broker.doctor.hosts import STEP_S, ms_since
from token_broker.memory.drivers.entra_password import EntraPassword, NoEntraPasswordError, wants_entra_password
from token_broker.memory.drivers.sqlite import sqlite_path
from token_broker.memory.store.tables import SCHEMA_REVISION
from token_broker.settings import Settings

__all__ = ["examine_database", "examine_sinks", "examine_zep", "judge_zep"]

ZEP_CLOUD = "https://api.getzep.com"
_UNKNOWN = "token-broker-doctor"  # Zep checks the key first, so a 404 proves that the key is right
_UNKNOWN_UUID = "00000000-0000-4000-8000-000000000000"
_NO_ROUTE = re.compile(r"route|page|endpoint|path|method", re.IGNORECASE)  # a server's word about the URL
_REFUSALS = {  # by class of SQLSTATE
    "28": ("refuses the login", "check the user, and its password or Entra role, in BROKER_DATABASE_URL"),
    "3D": ("has no such database", "create it, or correct the name in BROKER_DATABASE_URL"),
    "42": ("does not let this user read", "grant the user the database and its schema"),
    "53": ("has no connection left", "raise max_connections, or run fewer replicas"),
}
_REVISION = "SELECT version_num FROM alembic_version"


async def examine_database(settings: Settings) -> Check:
    """Reads the revision of the tables. It changes nothing, and creates no file."""
    url = settings.database_url.get_secret_value()
    if url.startswith("sqlite"):
        return _examine_sqlite(sqlite_path(url))
    return await _examine_postgresql(url, settings)


def _examine_sqlite(path: Path) -> Check:
    name = "database"
    if not path.exists():
        folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return Check(
                name,
                CheckStatus.FAILED,
                "its folder can't be written",
                remediation=f"let the broker write to {folder}",
            )
        return Check(name, CheckStatus.OK, "SQLite, created at the first start")
    began_s = time.monotonic()
    try:
        # mode=ro: doctor must neither create the file nor take the write lock of a running broker.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            revision = connection.execute(_REVISION).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):  # an empty file, which the broker fills when it starts
            return judge_revision(None, ms_since(began_s), "SQLite")
        return Check(name, CheckStatus.FAILED, "can't be read", remediation=f"check the owner of {path}, and its disk")
    except sqlite3.DatabaseError:
        return Check(
            name, CheckStatus.FAILED, "is not a SQLite file, or is damaged", remediation=f"restore {path} from a backup"
        )
    return judge_revision(revision[0] if revision else None, ms_since(began_s), "SQLite")


async def _examine_postgresql(url: str, settings: Settings) -> Check:
    where = make_url(url)
    shown = f"PostgreSQL at {where.host or where.query.get('host', 'localhost')}"
    try:
        import asyncpg
    except ImportError:
        remediation = "install the extra: pip install 'voice-token-broker[postgres]'"
        return Check("database", CheckStatus.FAILED, "the PostgreSQL driver is not installed", remediation=remediation)
    options: dict[str, Any] = {name: where.query[name] for name in ("host", "port", "ssl") if name in where.query}
    named = {"host": where.host, "port": where.port, "user": where.username, "database": where.database}
    options |= {name: value for name, value in named.items() if value is not None}
    entra = None
    if wants_entra_password(settings.database_url):
        entra = EntraPassword(
            settings.database_url, client_id=settings.client_id, timeout_s=STEP_S, proxy=settings.proxy
        )
    password = where.password if entra is None else entra.get
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(2 * STEP_S):  # asyncpg's own timeout covers the connection, not the queries
            connection = await asyncpg.connect(**options, password=password, timeout=STEP_S)
            try:
                there = await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL")
                revision = await connection.fetchval(_REVISION) if there else None
            finally:
                connection.terminate()  # close() would wait for a server that may hang
    except NoEntraPasswordError:
        remediation = "check the managed identity, and AZURE_CLIENT_ID; or put a password into BROKER_DATABASE_URL"
        return Check("database", CheckStatus.FAILED, f"no Entra token for {shown}", ms_since(began_s), remediation)
    except (OSError, TimeoutError):
        remediation = "check BROKER_DATABASE_URL's host and port, and the firewall rules"
        return Check("database", CheckStatus.FAILED, f"{shown} is not reached", ms_since(began_s), remediation)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        sqlstate_class = str(getattr(error, "sqlstate", ""))[:2]
        finding, remediation = _REFUSALS.get(sqlstate_class, ("answers with an error", "look at its log"))
        return Check("database", CheckStatus.FAILED, f"{shown} {finding}", remediation=remediation)
    finally:
        if entra is not None:
            await entra.aclose()
    return judge_revision(revision, ms_since(began_s), shown)


def judge_revision(found: str | None, value: str, shown: str) -> Check:
    """Whether this version knows the tables' revision. The broker migrates older tables when it starts."""
    if found is None:
        return Check("database", CheckStatus.OK, f"{shown}, empty: the tables are created at the first start", value)
    if found == SCHEMA_REVISION:
        return Check("database", CheckStatus.OK, f"{shown}, tables at revision {found}", value)
    if found < SCHEMA_REVISION:
        finding = f"{shown}, tables at an older revision, migrated to {SCHEMA_REVISION} at the next start"
        return Check("database", CheckStatus.NOTE, finding, value)
    remediation = "run the version that created them, or a newer one: this version refuses to write to them"
    return Check(
        "database", CheckStatus.FAILED, f"{shown}, tables of a newer version than this one", value, remediation
    )


async def examine_sinks(settings: Settings, client: httpx.AsyncClient) -> list[Check]:
    """Tries the routes that each sink uses, without storing anything."""
    checks = []
    for name in settings.sinks:
        if name == "http":
            checks.append(await _examine_http(settings, client))
        else:
            checks.append(await examine_zep(settings, client, cloud=name == "zep_cloud"))
    return checks


async def _examine_http(settings: Settings, client: httpx.AsyncClient) -> Check:
    """Whether the receiver is there. Nothing is posted: each event would have to be one that is true."""
    url, began_s = settings.memory_http_url or "", time.monotonic()
    host = urlsplit(url).hostname
    try:
        async with asyncio.timeout(STEP_S):
            answer = await client.request("OPTIONS", url, follow_redirects=False)
    except (httpx.HTTPError, OSError, TimeoutError) as error:
        finding = str(error) if isinstance(error, ProxyFailedError) else f"{host} does not answer"
        remediation = "check BROKER_MEMORY_HTTP_URL and the network; turns wait in the outbox, and none is lost"
        return Check("http sink", CheckStatus.FAILED, finding, ms_since(began_s), remediation)
    if answer.status_code == 410:  # noqa: PLR2004
        remediation = "the receiver wants no events: correct BROKER_MEMORY_HTTP_URL"
        return Check("http sink", CheckStatus.FAILED, f"{host} is gone", "HTTP 410", remediation)
    if 300 <= answer.status_code < 400:  # noqa: PLR2004
        remediation = "events are not redirected: give the URL that they should go to"
        return Check("http sink", CheckStatus.FAILED, f"{host} redirects", f"HTTP {answer.status_code}", remediation)
    if answer.status_code >= 500:  # noqa: PLR2004
        remediation = "look at the receiver's log; turns wait in the outbox, and none is lost"
        return Check(
            "http sink", CheckStatus.WARNING, f"{host} answers with an error", f"HTTP {answer.status_code}", remediation
        )
    return Check("http sink", CheckStatus.OK, f"{host} answers", ms_since(began_s))


@dataclass(frozen=True, slots=True)
class _Route:
    """A route that turns need, and how it is asked without storing anything.

    One that makes something gets a body without what it needs: it refuses that, and a 404 says that it is not there.
    Of the others a 404 is the right answer, in Zep's own shape.
    """

    method: str
    path: str
    body: dict[str, Any] | None = None
    makes: bool = False


# In the order in which a turn needs them.
_V2_ROUTES = (
    _Route("GET", f"/api/v2/sessions/{_UNKNOWN}"),
    _Route("POST", "/api/v2/users", {}, makes=True),
    _Route("POST", "/api/v2/sessions", {}, makes=True),
    _Route("POST", f"/api/v2/sessions/{_UNKNOWN}/memory", {"messages": []}),
    _Route("GET", f"/api/v2/sessions/{_UNKNOWN}/messages?limit=1&cursor=0"),
)
_V4_ROUTES = (
    _Route("POST", "/api/v4/users/lookup", {"user_id": _UNKNOWN}),
    _Route("POST", "/api/v4/threads", {}, makes=True),
    _Route("GET", f"/api/v4/threads/{_UNKNOWN_UUID}/messages?page_size=1"),
    _Route("POST", f"/api/v4/threads/{_UNKNOWN_UUID}/messages", {"messages": []}),
    _Route("GET", f"/api/v4/tasks/{_UNKNOWN_UUID}"),
)


async def examine_zep(settings: Settings, client: httpx.AsyncClient, *, cloud: bool = False) -> Check:
    """Asks each route that turns go to for something that does not exist. The first that is not well is told."""
    name, routes = ("zep_cloud", _V4_ROUTES) if cloud else ("zep", _V2_ROUTES)
    base = (settings.zep_api_url or ZEP_CLOUD).rstrip("/").removesuffix("/api/v4")
    key = settings.zep_api_key.get_secret_value() if settings.zep_api_key else ""
    began_s, check = time.monotonic(), None
    for route in routes:
        headers = {"Authorization": f"Api-Key {key}", "Idempotency-Key": f"{_UNKNOWN}-{secrets.token_hex(8)}"}
        try:
            async with asyncio.timeout(STEP_S):
                answer = await client.request(route.method, f"{base}{route.path}", headers=headers, json=route.body)
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            remediation = (
                "check ZEP_API_URL, the network and its proxy; turns wait in the outbox meanwhile, and none is lost"
            )
            silent = f"{urlsplit(base).hostname} does not answer"
            finding = str(error) if isinstance(error, ProxyFailedError) else silent
            return Check(name, CheckStatus.FAILED, finding, ms_since(began_s), remediation)
        check = judge_zep(
            answer.status_code,
            ms_since(began_s),
            name=name,
            is_zeps=_is_zeps(answer) and not route.makes,
            is_invalid=route.method == "POST",
        )
        if check.status is not CheckStatus.OK:
            return check
    assert check is not None  # noqa: S101  # there is a route
    return check


def _is_zeps(answer: httpx.Response) -> bool:
    """Whether a 404 is Zep's own word about something: JSON with a message. Without the route it is a server's page."""
    try:
        body = answer.json()
    except ValueError:
        return False
    found = isinstance(body, dict) and (body.get("message") or body.get("error"))
    said = str(found.get("message") or found) if isinstance(found, dict) else str(found or "")
    return bool(found) and _NO_ROUTE.search(said) is None


def judge_zep(status: int, value: str, *, name: str = "zep", is_zeps: bool = True, is_invalid: bool = False) -> Check:
    """What Zep's status for something unknown means; `is_zeps`: a 404 is Zep's own word about it.

    `is_invalid`: what was sent is invalid, so a 400 is as good as a 404.
    """
    if status in {404, 405} and not is_zeps:
        other = "zep" if name == "zep_cloud" else "zep_cloud"
        remediation = (
            f"correct ZEP_API_URL; or this is a Zep of another version: BROKER_MEMORY_SINKS={other} (docs/memory.md)"
        )
        return Check(
            name, CheckStatus.FAILED, "does not have the routes that turns go to", f"HTTP {status}", remediation
        )
    if status in {200, 404} or (is_invalid and status in {400, 409, 422}):
        return Check(name, CheckStatus.OK, "accepts the key, and has the routes", value)
    if status in {401, 403}:
        return Check(name, CheckStatus.FAILED, "refuses the key", f"HTTP {status}", "correct ZEP_API_KEY")
    if status == 429:  # noqa: PLR2004
        return Check(
            name, CheckStatus.WARNING, "its rate limit is reached", f"HTTP {status}", "turns wait; ask Zep for more"
        )
    remediation = "look at Zep's status; turns wait in the outbox meanwhile, and none is lost"
    return Check(name, CheckStatus.FAILED, "answers with an error", f"HTTP {status}", remediation)
