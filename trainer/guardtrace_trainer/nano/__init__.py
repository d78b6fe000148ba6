"""The embedded auditor ``builtin:nano``, by the full pipeline on a CPU.

``corpus``, ``questions``, ``wording``, ``authored``, ``benign`` and ``render`` draw traces and pictures from ``bank/``;
``expansion`` makes them requests, which ``scripted`` models, served by ``serving``, and ``experts`` answer and judge.
``warm_up`` is the base, with ``documents``, ``batches``, ``model``, ``trainee``, ``vocabulary`` and ``derive``;
``export`` and ``base`` write it. ``held_out`` is what it is evaluated on, ``card`` its tables.
"""
