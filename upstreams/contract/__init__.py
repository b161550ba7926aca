"""What `bench check` does: it holds an upstream to the contract and measures what it costs."""
