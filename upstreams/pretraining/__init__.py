"""What a method of pre-training is, and the one loop that trains all of them."""
