"""The main job on real input, on any machine: `make demo`."""
