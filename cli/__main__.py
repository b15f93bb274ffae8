"""`python -m cli`: the command `dreambooth` of this interpreter."""

from cli.main import main

if __name__ == "__main__":
    main()
