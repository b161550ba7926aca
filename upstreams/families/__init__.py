"""Loaders of published pretrained encoders, one module per checkpoint format or model family."""
