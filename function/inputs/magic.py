"""What a file is, by its first bytes. Pure."""

from __future__ import annotations

HEAD_BYTES = 64
"""How many bytes tell."""

_BEGINNINGS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF87a", ".gif"),
    (b"GIF89a", ".gif"),
    (b"II*\x00", ".tiff"),
    (b"MM\x00*", ".tiff"),
    (b"\x00\x00\x01\x00", ".ico"),
    (b"OggS", ".ogg"),
    (b"fLaC", ".flac"),
    (b"FLV\x01", ".flv"),
    (b"0&\xb2u\x8ef\xcf\x11", ".wmv"),
    (b"\xff\xfb", ".mp3"),
    (b"\xff\xf3", ".mp3"),
    (b"\xff\xf2", ".mp3"),
)
_RIFF = {b"WEBP": ".webp", b"WAVE": ".wav", b"AVI ": ".avi"}
_BRANDS = {
    b"qt  ": ".mov",
    b"M4A ": ".m4a",
    b"M4V ": ".m4v",
    b"avif": ".avif",
    b"avis": ".avif",
    b"heic": ".heic",
    b"heix": ".heic",
    b"mif1": ".heic",
}


def extension_of(head: bytes) -> str:
    """The extension of a file that begins so; "" for what isn't picture, video or sound."""
    for beginning, extension in _BEGINNINGS:
        if head.startswith(beginning):
            return extension
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return ".3gp" if head[8:11] == b"3gp" else _BRANDS.get(head[8:12], ".mp4")
    if head.startswith(b"\x1aE\xdf\xa3"):
        return ".webm" if b"webm" in head else ".mkv"
    return _of_weak_signs(head)


def _of_weak_signs(head: bytes) -> str:
    """Formats of which two or three letters are no proof: what follows must fit too."""
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return ".bmp"
    if head.startswith(b"ID3") and head[3:4] in {b"\x02", b"\x03", b"\x04"}:
        return ".mp3"
    return ""
