"""Nodes for tests on a real GPU: one that holds memory, one that breaks the CUDA context."""

import torch


class HoldMemory:
    """Allocates memory on the GPU and keeps it; ComfyUI keeps the node's object until it is asked to free memory."""

    FUNCTION, CATEGORY, RETURN_TYPES, OUTPUT_NODE = "run", "tests", ("IMAGE",), False

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"gib": ("INT", {"default": 1, "min": 1, "max": 1024}), "seed": ("INT", {"default": 0})}}

    def run(self, gib, seed):
        held = torch.empty(gib * 2**30, dtype=torch.uint8, device="cuda")
        held[::4096] = seed % 251
        self.held = held
        return (torch.zeros(1, 8, 8, 3),)


class BreakContext:
    """A device-side assert: every later CUDA call of the process fails."""

    FUNCTION, CATEGORY, RETURN_TYPES, OUTPUT_NODE = "run", "tests", ("IMAGE",), False

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0})}}

    def run(self, seed):
        index = torch.tensor([10**6 + seed], device="cuda")
        torch.zeros(4, device="cuda")[index].sum().item()
        return (torch.zeros(1, 8, 8, 3),)


NODE_CLASS_MAPPINGS = {"TestHoldMemory": HoldMemory, "TestBreakContext": BreakContext}
