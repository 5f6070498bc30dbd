"""Measurements of speed and memory, side by side: the tables of `make bench` and `make gpu`."""
