"""The three stages over TRL's trainers: ``sft``, ``dpo`` and, after ``mine`` with its ``oracle``, ``ogdpo``.

- ``sft``, ``dpo`` (both of the others), ``mine`` with ``oracle`` and ``conflicts``: the stages.
- ``settings``: what can be set. ``commands``: the command line.
- ``encode``: a row's tokens as the auditor's backend makes them; ``lengths``: none is longer than it may be.
- ``batches``, ``answers``, ``trainers``: what TRL is given, and a faster forward pass for CPUs.
- ``training``, ``folders``: what all stages do, and the checkpoints they start from and make;
  ``processes``: several on a CPU.
"""
