"""The kinds of media files, by the suffixes of their names."""

import pathlib

# Kind of file (the key of an item's dict) -> suffixes.
_KINDS = {
    "image": ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif .jp2 "
    ".j2k .jpx",
    "audio": ".wav .w64 .flac .ogg .oga .opus .mp3 .mp2 .aiff .aif .aifc .au .caf .m4a .m4b .mka .weba .aac .ac3 .wma "
    ".amr .ape .wv .tta",
    "video": ".mp4 .m4v .mov .qt .mkv .webm .avi .3gp .3g2 .mpg .mpeg .mpe .vob .mts .m2ts .wmv .asf .flv .f4v .ogv "
    ".mxf",
}
SUFFIXES = {kind: tuple(suffixes.split()) for kind, suffixes in _KINDS.items()}
# Media that are not read: as the end of a string they tell a path too.
_NOT_READ = frozenset([".heic", ".heif", ".svg", ".eps", ".psd", ".dng", ".cr2", ".nef"])
_KIND_OF = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}


def media_kind(name: str | pathlib.PurePath) -> str:
    """Returns the kind of the media file with a name, in letters of either case; empty for another file."""
    return _KIND_OF.get(pathlib.PurePath(name).suffix.lower(), "")


def is_media_path(text: str) -> bool:
    """Returns whether a string is taken for the path of a media file: one line that ends in its suffix."""
    path = pathlib.PurePath(text)
    ends = path.suffix.lower() in _KIND_OF or path.suffix.lower() in _NOT_READ
    return ends and not path.stem[-1:].isspace() and len(text.splitlines()) == 1
