"""`bench compare`: two upstreams, task by task."""
