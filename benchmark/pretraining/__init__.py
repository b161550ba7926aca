"""`bench pretrain` and `bench pseudo-label`: audio, order, files and model cards."""
