"""How fast an artifact is on this machine, and where the time goes: `deepzig bench`."""
