"""`python -m deepzig` is `deepzig`."""

from .cli import main

main()
