"""Instruments each agent framework when a program that `agentexec-otel run` has started imports it.

The interpreter runs this module before the program, and before each Python process that the program starts. It imports
nothing of ours or of a framework: a program that uses none is not slowed down, and one that patches modules at its
start, as with gevent, finds them unpatched.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# By the module whose import completes it. Ours is named as well, since it may be what imports the framework.
_FRAMEWORKS = {"agents": "openai_agents", "agentexec_otel.instrumentation.openai_agents": "openai_agents"}


class _FrameworkFinder:
    """Finds the modules of `_FRAMEWORKS` as the other finders do, and is called back when their import has ended."""

    def __init__(self) -> None:
        self._importing: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name not in _FRAMEWORKS:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            self._follow(spec.loader, _FRAMEWORKS[name])
        return spec

    def _follow(self, loader: Any, framework: str) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.exec_module = execute
            self._importing.append(framework)
            try:
                execute(module)
            finally:
                self._importing.remove(framework)
            if framework not in self._importing:
                _instrument(framework)

        loader.exec_module = exec_module


def _instrument(framework: str) -> None:
    try:
        import agentexec_otel as ax

        ax.instrument(framework)
    except ImportError as exc:  # such as a package of the program with the same name
        import logging

        logging.getLogger("agentexec_otel").warning("runs of %s are not recorded: %s", framework, exc)


def _run_shadowed() -> None:
    """Import the module of this name that would have been found without us."""
    ours = sys.modules.pop(__name__)
    try:
        import_module(__name__)
    except ModuleNotFoundError as exc:
        if exc.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, ours)


sys.path[:] = [folder for folder in sys.path if f"{folder}/sitecustomize.py" != __file__]
sys.meta_path.insert(0, _FrameworkFinder())
_run_shadowed()
