"""The pages people look at: rendered here, no build step, nothing fetched from elsewhere."""
