"""``python -m guardtrace_trainer``."""

from guardtrace_trainer.cli import main

if __name__ == "__main__":
    main()
