"""The command ``guardtrace``: one module a command."""
