"""Who sees to it that the bill stops when nobody looks: signals, the keeper, the first look of every command, the timer."""
