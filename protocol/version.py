"""The number of the wire protocol between the service, its agents and its clients."""

PROTOCOL_VERSION = 1
"""Raised when a message changes in a way that an older reader would misunderstand. Additions do not raise it."""
