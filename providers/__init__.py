"""GPU clouds behind one contract."""
