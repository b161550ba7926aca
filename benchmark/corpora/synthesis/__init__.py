"""Synthetic sound: what the embedded corpora are made of."""
