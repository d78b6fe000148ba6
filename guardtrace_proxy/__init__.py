"""guardtrace-proxy: an OpenAI-compatible reverse proxy that audits a thinking model's reasoning while it streams."""

__version__ = "0.1.0"
