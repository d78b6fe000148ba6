"""The record of decisions: ``lines`` says what a line holds, ``evidence`` what text may stand in it, ``audit_log``
queues and writes lines, ``line_file`` is the file."""
