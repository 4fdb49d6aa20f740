"""`python -m clt_lightning`."""

from clt_lightning.cli.main import main

if __name__ == "__main__":
    main()
