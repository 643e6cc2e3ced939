"""The paper's Table 1 on pictures and weights that the user has: `python -m bench.paper_table1` (docs/paper_table1.md).

A folder and not a file, because it cannot run without the user's files: `make bench` runs the files.
"""
