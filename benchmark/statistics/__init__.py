"""Resampling, intervals and tests, from records and their outcomes alone."""
