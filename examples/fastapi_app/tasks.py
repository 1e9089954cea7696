"""The tasks. The web process enqueues them; workers import this module and run them:

agentexec-otel worker fastapi_app.tasks:pool
"""

from __future__ import annotations

from uuid import UUID

from pydantic import BaseModel, Field

import agentexec_otel as ax
from agentexec_otel.activity import ActivityListItemSchema
from fastapi_app.researcher import researcher
from fastapi_app.settings import engine, settings

pool = ax.Pool(
    engine,
    settings.broker,
    results=settings.results,
    queue=settings.queue,
    keep_contexts=True,  # for retries
    create_tables=True,
)


class ResearchContext(BaseModel):
    """What to research."""

    company: str = Field(min_length=1, max_length=100)


class Report(BaseModel):
    """What has been found."""

    company: str
    summary: str


@pool.task("research")
async def research(agent_id: UUID, context: ResearchContext) -> Report:
    """Have an agent research a company. Its last line before the end is what it has found."""
    runner = ax.OpenAIRunner(agent_id)
    agent = researcher(runner, context.company)
    result = await runner.run(agent, input=f"How is {context.company} doing?", max_turns=20)
    report = Report(company=context.company, summary=str(result.final_output))
    ax.activity.update(agent_id, report.summary, percentage=100)
    return report


async def run_again(activity: ActivityListItemSchema) -> None:
    """Send the task of an activity once more: it was re-opened, and waits as its next attempt."""
    context = ResearchContext(company=(activity.metadata or {})["company"])
    labels = {"agentexec_agent_id": str(activity.agent_id), "agentexec_attempt": str(activity.attempt)}
    task = pool.broker.find_task(activity.agent_type)
    assert task is not None
    await pool.startup()
    kicker = task.kicker().with_task_id(str(activity.agent_id)).with_labels(**labels)
    await kicker.kiq(agent_id=str(activity.agent_id), context=context.model_dump())
