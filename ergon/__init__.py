"""What users import and type: the SDK client, the `ergon` command, and `ergon.runtime` for training scripts."""
