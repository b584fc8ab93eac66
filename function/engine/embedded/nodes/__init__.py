"""The nodes of this core. `catalogue` lists them all; it imports numpy and Pillow, so the server loads it late."""
