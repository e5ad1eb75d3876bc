"""What comes from a stranger's machine: how it is read, and what of it is believed."""
