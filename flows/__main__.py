"""`python -m flows`: the command `dreambooth` of this interpreter."""

from flows.cli import main

if __name__ == "__main__":
    main()
