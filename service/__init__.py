"""All state, all HTTP, the only commit point."""
