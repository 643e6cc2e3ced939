"""`python -m bench.paper_table1 ...`, from the repository's root."""

from __future__ import annotations

import importlib
import os
import sys

from tools.host import PACKAGE, as_package

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported: nothing is downloaded
    as_package()  # as the tests import it: relative imports reach i2l_core
    sys.exit(importlib.import_module(f"{PACKAGE}.bench.paper_table1.command").main(sys.argv[1:]))
