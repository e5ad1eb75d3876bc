"""Keys and accounts, the doctor, and the drill."""
