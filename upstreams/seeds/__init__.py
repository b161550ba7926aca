"""The five seed systems, each with its encoder and pre-training objective, and the parts that they share."""
