"""Speed and memory of surgeon beside a plain file copy, and beside mergekit; see `make bench`."""
