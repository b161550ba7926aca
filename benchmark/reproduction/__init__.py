"""`bench rerun`: run a recorded job again, and compare the result with the record."""
