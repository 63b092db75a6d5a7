"""`python -m semisup`: the command line where scripts are not on the PATH."""

from semisup.cli.app import main

if __name__ == "__main__":
    main()
