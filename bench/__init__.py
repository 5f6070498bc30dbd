"""Speed and memory, side by side: one module for each table of `make bench`."""
