"""``python -m vrts`` is the ``vrts`` command."""

import sys

from vrts.cli import main

if __name__ == "__main__":
    sys.exit(main())
