"""Offline evaluation: what auditors are judged by, how, and which other guards stand beside them."""
