"""The types that users get: `public_api.py` is what `make check` checks; here it is complete, and true when it runs."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import agentexec_otel as ax
from tests.typing import public_api

SOURCE = Path(public_api.__file__).read_text()


@pytest.mark.parametrize(
    ("module", "prefix"),
    [
        ("agentexec_otel", r"ax\."),
        ("agentexec_otel.activity", r"(?:ax\.activity\.|\b)"),
        ("agentexec_otel.activity.aio", r"ax\.activity\.aio\."),
        ("agentexec_otel.db", r"ax\.db\."),
        ("agentexec_otel.export", r"\b"),
        ("agentexec_otel.reasons", r"ax\.reasons\."),
        ("agentexec_otel.spool", r"ax\.spool\."),
        ("agentexec_otel.tasks", r"\b"),
        ("agentexec_otel.testing", r"\b"),
    ],
)
def test_everything_public_is_used(module: str, prefix: str) -> None:
    """Each public name stands in the file that is type-checked."""
    names: list[str] = import_module(module).__all__
    assert [name for name in names if not re.search(rf"{prefix}{name}\b", SOURCE)] == []


async def test_it_is_true_when_it_runs(tmp_path: Path) -> None:
    """The calls that are type-checked work as they stand."""
    url = f"sqlite:///{tmp_path}/x.db"
    engine = create_engine(url)
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    public_api.set_up(url, engine)
    public_api.migrations(engine)
    public_api.settings()
    agent_id = await in_thread(url, tmp_path)
    async with AsyncSession(async_engine) as session:
        await public_api.asynchronous(session, agent_id)
        await public_api.model_asynchronously(session)
    await public_api.following_asynchronously(async_engine, async_sessionmaker(async_engine), agent_id)
    await public_api.retention_asynchronously(async_engine, tmp_path)
    await public_api.tasks()
    public_api.agents(agent_id)
    public_api.plug_in(url)
    engine.dispose()
    await async_engine.dispose()


async def in_thread(url: str, tmp_path: Path) -> UUID:
    """What waits is done off the event loop, as an application does it."""
    import asyncio

    def work() -> UUID:
        engine = create_engine(url)
        agent_id = public_api.write()
        public_api.run()
        with Session(engine) as session:
            public_api.write_in(session, agent_id)
            public_api.read(session, agent_id)
            public_api.model(session)
        public_api.following(engine, sessionmaker(engine), agent_id)
        public_api.retention(engine, tmp_path)
        public_api.errors(UUID(int=5))
        engine.dispose()
        return agent_id

    return await asyncio.to_thread(work)


WRONG = {
    "a number as task name": "ax.activity.create(5)",
    "a text as percentage": "ax.activity.update(agent_id, 'x', percentage='50')",
    "an engine as session": "ax.activity.complete(agent_id, session=engine)",
    "a session that is missing": "ax.activity.detail(agent_id)",
    "an exporter without methods": "ax.configure(exporters=[object()])",
    "a setting that does not exist": "ax.CONF.tabel_prefix",
    "an unknown argument": "ax.activity.run('task', metdata={})",
    "a coroutine that is not awaited": "await_me: int = ax.activity.aio.create('task')",
}


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_mistakes_are_found(tmp_path: Path, checker: str) -> None:
    """From outside, with the installed package: the right file passes strict checks, each mistake is reported."""
    (tmp_path / "right.py").write_text(SOURCE)
    wrong = ["import agentexec_otel as ax", "from uuid import UUID", "from sqlalchemy import Engine"]
    wrong += ["def mistakes(agent_id: UUID, engine: Engine) -> None:", *(f"    {line}" for line in WRONG.values())]
    (tmp_path / "wrong.py").write_text("\n".join(wrong))
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict", "reportUnusedExpression": false}')
    options = ["--strict"] if checker == "mypy" else ["--pythonpath", sys.executable]
    command = [sys.executable, "-m", checker, *options, "right.py", "wrong.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 1, result.stdout + result.stderr
    assert not re.search(r"right\.py:\d+.*error", result.stdout), result.stdout
    found = {int(line) for line in re.findall(r"wrong\.py:(\d+)(?::\d+)?(?: -|:) error", result.stdout)}
    assert found >= set(range(5, 5 + len(WRONG))), result.stdout
    assert ax.__file__
