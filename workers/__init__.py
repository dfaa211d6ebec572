"""The agent on each node. It knows `protocol` and the operating system, nothing else of ours, and makes no choices."""
