"""Features: an upstream encodes each clip once, and heads read the stored result many times."""
