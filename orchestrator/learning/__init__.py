"""What runs of this computer took, phase by phase, and what the next estimate makes of it."""
