"""Clips as plain values: audio, manifests, splits, trial lists, leaks, and the user's own folder or table."""
