"""Every family at its real size on a real GPU, with random weights: `python -m tests.gpu`, or `make gpu`."""
