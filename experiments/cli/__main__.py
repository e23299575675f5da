"""`python -m experiments.cli` is `admarket`."""

from experiments.cli import main

if __name__ == "__main__":
    main()
