"""What machines and trainings cost: tables of cards and families, expected waste, the first place in words, the worst case."""
