"""`bench rerun`: a recorded job done again, and how far the two agree."""
