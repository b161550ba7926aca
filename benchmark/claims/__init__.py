"""The claims of the seed systems' papers, re-run in miniature: what is claimed, what is run, and what came out."""
