"""The main job on one screen: a replaying upstream, the proxy with an auditor, and a client on both sides."""
