"""Which inputs of nodes name files: of models, and of what a job brings. Pure.

The loaders of models are what ComfyUI 0.3.64 and 0.33.0 declare. Not among them: DiffusersLoader, whose value names a
directory of unknown files; it works with what lies in the model directory. The loaders of other files are those of
ComfyUI, of VideoHelperSuite, and what comfyui-api takes for one: any `image`.
"""

from __future__ import annotations


def _loaders(text: str, *inputs: tuple[str, str]) -> dict[tuple[str, str], str]:
    return {(loader, name): folder for loader in text.split() for name, folder in inputs}


LOADER_INPUTS: dict[tuple[str, str], str] = {
    **_loaders(
        "CheckpointLoaderSimple unCLIPCheckpointLoader ImageOnlyCheckpointLoader CreateHookModelAsLora"
        " CreateHookModelAsLoraModelOnly LTXVAudioVAELoader",
        ("ckpt_name", "checkpoints"),
    ),
    **_loaders("CheckpointLoader", ("config_name", "configs"), ("ckpt_name", "checkpoints")),
    **_loaders("LTXAVTextEncoderLoader", ("text_encoder", "text_encoders"), ("ckpt_name", "checkpoints")),
    **_loaders(
        "LoraLoader LoraLoaderModelOnly LoraLoaderBypass LoraLoaderBypassModelOnly CreateHookLora"
        " CreateHookLoraModelOnly",
        ("lora_name", "loras"),
    ),
    **_loaders("TrainLoraNode", ("existing_lora", "loras")),
    **_loaders("VAELoader", ("vae_name", "vae")),
    **_loaders("UNETLoader", ("unet_name", "diffusion_models")),
    **_loaders("CLIPLoader", ("clip_name", "text_encoders")),
    **_loaders(
        "DualCLIPLoader TripleCLIPLoader QuadrupleCLIPLoader",
        ("clip_name1", "text_encoders"),
        ("clip_name2", "text_encoders"),
    ),
    **_loaders("TripleCLIPLoader QuadrupleCLIPLoader", ("clip_name3", "text_encoders")),
    **_loaders("QuadrupleCLIPLoader", ("clip_name4", "text_encoders")),
    **_loaders("CLIPVisionLoader", ("clip_name", "clip_vision")),
    **_loaders("ControlNetLoader DiffControlNetLoader", ("control_net_name", "controlnet")),
    **_loaders("StyleModelLoader", ("style_model_name", "style_models")),
    **_loaders("GLIGENLoader", ("gligen_name", "gligen")),
    **_loaders("HypernetworkLoader", ("hypernetwork_name", "hypernetworks")),
    **_loaders("UpscaleModelLoader", ("model_name", "upscale_models")),
    **_loaders("LatentUpscaleModelLoader", ("model_name", "latent_upscale_models")),
    **_loaders("PhotoMakerLoader", ("photomaker_model_name", "photomaker")),
    **_loaders("ModelPatchLoader", ("name", "model_patches")),
    **_loaders("AudioEncoderLoader", ("audio_encoder_name", "audio_encoders")),
    **_loaders("FrameInterpolationModelLoader", ("model_name", "frame_interpolation")),
    **_loaders("OpticalFlowLoader", ("model_name", "optical_flow")),
    **_loaders("LoadMoGeModel LoadDA3Model", ("model_name", "geometry_estimation")),
    **_loaders("LoadMediaPipeFaceLandmarker", ("model_name", "detection")),
    **_loaders("LoadBackgroundRemovalModel", ("bg_removal_name", "background_removal")),
}
"""Folder of each (class, input name) of ComfyUI's own loaders."""

LOADER_CLASSES = frozenset(class_type for class_type, _ in LOADER_INPUTS)
"""Classes whose inputs we know."""

_VIDEO_CLASSES = "LoadVideo VHS_LoadVideo VHS_LoadVideoPath VHS_LoadVideoFFmpeg VHS_LoadVideoFFmpegPath"

MEDIA_INPUTS = {
    ("LoadImage", "image"): "image",
    ("LoadImageMask", "image"): "image",
    ("LoadAudio", "audio"): "audio",
    ("LoadLatent", "latent"): "latent",
    ("VHS_LoadImagePath", "image"): "image",
    ("VHS_LoadAudio", "audio_file"): "audio",
    ("VHS_LoadAudioUpload", "audio"): "audio",
    **{(class_type, name): "video" for class_type in _VIDEO_CLASSES.split() for name in ("file", "video")},
}
"""Inputs of loaders that we know, by class and name: what kind of file they name."""

CUSTOM_INPUT = "image"
"""The input of any other node that may stand for a file."""


def is_media(class_type: str, name: str) -> bool:
    """Whether an input of this name may stand for a file."""
    return (class_type, name) in MEDIA_INPUTS or name == CUSTOM_INPUT
