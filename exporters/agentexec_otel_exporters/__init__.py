"""Exporters of agentexec-otel. They import the core; the core never imports them."""
