"""Compare two upstreams task by task, as `bench compare` does."""
