"""Files that cross stages: written whole or not at all, hashed, and traceable to what made them."""
