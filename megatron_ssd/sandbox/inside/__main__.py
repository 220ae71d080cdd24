"""Starts the fork server. It is run by path: this project is not installed inside the container."""

import sys

if __name__ == "__main__":
    sys.path.insert(0, __file__.rpartition("/megatron_ssd/")[0])
    from megatron_ssd.sandbox.inside.server import serve

    del sys.path[0]  # programs find only the standard library and the named packages
    serve(sys.argv.pop())
