"""Start the fork server: run by path, with nothing of this project installed where it runs."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from megatron_ssd.sandbox.inside.server import serve

    del sys.path[0]  # programs find the standard library and what is named, alone
    serve(sys.argv.pop())
