"""A status API to mount in a FastAPI application, as `ax.web`. Needs the extra ``web``."""

from agentexec_otel.web._router import router
from agentexec_otel.web._scope import Scope, public

__all__ = ["Scope", "public", "router"]
