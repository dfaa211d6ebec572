"""Folders as tar.gz files: packed the same way every time, unpacked without trusting what they hold.

The client ships code with it, the agent unpacks that and packs outputs, the client unpacks those. Standard library
only; nothing here knows the rest of Ergon.
"""
