"""`python -m vaezoo`: the command line."""

from vaezoo.cli import main

if __name__ == "__main__":
    main()
