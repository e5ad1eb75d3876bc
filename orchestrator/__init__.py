"""The user's own computer: plans, rents, ships, watches, fetches, ends."""
