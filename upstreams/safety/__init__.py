"""Reading checkpoints as data: nothing that is read can run code."""
