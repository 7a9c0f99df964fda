"""`python -m jaxdp.data.prepare` is the command `jaxdp prepare`."""

from jaxdp.prepare import main

if __name__ == "__main__":
    main()
