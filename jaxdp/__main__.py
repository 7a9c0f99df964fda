"""`python -m jaxdp` is the command `jaxdp`."""

from jaxdp.cli.command import main

if __name__ == "__main__":
    main()
