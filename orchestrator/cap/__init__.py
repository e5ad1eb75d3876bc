"""Keeping to the cap while a machine trains: its price, the deadline, the queue that still fits."""
