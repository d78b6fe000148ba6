"""The prefix curriculum: where a trace turns unsafe, and what its beginnings teach an auditor that judges streams."""
