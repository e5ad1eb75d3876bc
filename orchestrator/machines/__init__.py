"""Whether a machine is what was offered, can end itself, is lost; which ones to keep away from; whether another pays."""
