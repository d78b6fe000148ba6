"""``python -m guardtrace_proxy`` is the command ``guardtrace``."""

from guardtrace_proxy.cli.app import main

main()
