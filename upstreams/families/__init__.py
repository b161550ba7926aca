"""Encoders that other people trained, read from their own formats."""
