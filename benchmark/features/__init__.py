"""Features: an upstream encodes each clip once, and heads read the result many times."""
