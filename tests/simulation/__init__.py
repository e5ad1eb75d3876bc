"""Real decision code against a cloud, network, disk and clock that are faulty by a seed: `python -m tests.simulation SEED` tells one."""
