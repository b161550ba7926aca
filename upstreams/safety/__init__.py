"""Read checkpoints as data only, so that no code of a checkpoint is executed."""
