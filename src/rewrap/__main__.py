"""`python -m rewrap`."""

from rewrap.cli import main

if __name__ == "__main__":
    main()
