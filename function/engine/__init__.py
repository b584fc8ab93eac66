"""The engine: a ComfyUI core in a process of its own, supervised and spoken to by ComfyUI's protocol.

Importing the supervisor is cheap, so that the process boots while the rest of the function is still being imported;
import the modules of this package by name.
"""
