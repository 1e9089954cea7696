"""A status API and a dashboard to mount in an ASGI application, as `ax.web`. Needs the extra ``web``."""

from agentexec_otel.web._dashboard import dashboard
from agentexec_otel.web._router import router
from agentexec_otel.web._scope import Scope, public

__all__ = ["Scope", "dashboard", "public", "router"]
