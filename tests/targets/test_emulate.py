"""The emulated instructions themselves, and that misuse of tiles is found."""
