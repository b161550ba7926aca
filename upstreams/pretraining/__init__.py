"""The interface of a pre-training method, and the one loop that trains all methods."""
