"""`python -m latentknobs` is `latentknobs`."""

from latentknobs.cli import main

if __name__ == "__main__":
    main()
