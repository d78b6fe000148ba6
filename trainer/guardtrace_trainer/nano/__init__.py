"""The embedded auditor: a Qwen2.5-VL of a few million parameters, trained from nothing on an authored corpus.

``corpus`` and ``render`` make traces and images, ``vocabulary`` the tokenizer, ``model`` the network, ``train`` the
three stages, ``export`` the checkpoint, ``evaluate`` and ``card`` the figures.
"""
