"""The reverse proxy: a bare ASGI app between clients, the upstream thinking model and the auditor."""
