"""Environment variables that are no setting: reported once, with the nearest name."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.one_python


def stderr_of_import(variables: dict[str, str]) -> list[str]:
    """What a fresh process writes when it imports the SDK twice and configures nothing."""
    code = "import agentexec_otel, agentexec_otel._config"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AGENTEXEC_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | variables, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stderr.splitlines()


def test_misspelt_variable_is_reported_with_the_nearest_name() -> None:
    """Each unknown variable is one warning at the import, with the setting that may have been meant, but no value."""
    assert stderr_of_import({"AGENTEXEC_DATABSE_URL": "canary", "AGENTEXEC_ZZZ": "canary"}) == [
        "AGENTEXEC_DATABSE_URL is no setting of agentexec-otel and has no effect: did you mean AGENTEXEC_DATABASE_URL?",
        "AGENTEXEC_ZZZ is no setting of agentexec-otel and has no effect",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "AGENTEXEC_LEASE_SECONDS",  # ours
        "agentexec_lease_seconds",  # as pydantic-settings reads it, too
        "AGENTEXEC_REDIS_URL",  # agentexec's
        "AGENTEXEC_NUM_WORKERS",
        "AGENTEXEC_TEST_POSTGRES",  # our tests'
        "AGENTEXEC_SERVICE_HOST",  # those of Kubernetes, for services named agentexec and agentexec-db
        "AGENTEXEC_DB_PORT_5432_TCP_ADDR",
    ],
)
def test_variables_with_a_reader_are_not_reported(name: str) -> None:
    """Settings, and the variables of agentexec, of our tests and of Kubernetes, cause no warning."""
    assert stderr_of_import({name: "30"}) == []
