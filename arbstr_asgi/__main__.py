"""`python -m arbstr_asgi`: the `arbstr` command."""

from arbstr_asgi.cli.main import main

if __name__ == "__main__":
    main()
