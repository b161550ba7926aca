"""The five seed systems, encoder and objective side by side, and the parts they share."""
