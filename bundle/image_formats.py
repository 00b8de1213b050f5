"""Recognises files that are not accepted by their first bytes, to tell the client what to do."""

import codecs
import re

_CONVERT = "convert it to JPEG"
_FRAMES = "send single frames as JPEG"
# First bytes of a file, its format, and what to do. The first match counts.
_SIGNATURES = (
    (rb"....ftyp(?:hei[cxms]|hev[cxms])", "HEIC", _CONVERT),
    (rb"....ftypavi[fs]", "AVIF", _CONVERT),
    (rb"....ftyp(?:mif1|msf1).{4}(?:....)*?avif", "AVIF", _CONVERT),
    (rb"....ftyp(?:mif1|msf1)", "HEIF", _CONVERT),
    (rb"....ftypcrx ", "a Canon raw file", _CONVERT),
    (rb"....(?:ftyp|moov|mdat|wide|free|skip)", "a video", _FRAMES),  # MP4, QuickTime
    (rb"\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|OggS", "a video", _FRAMES),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video", _FRAMES),  # Windows Media
    (rb"\0\0\x01[\xba\xb3]|G.{187}G", "a video", _FRAMES),  # MPEG
    (rb"GIF8[79]a", "GIF", "convert it to PNG"),
    (rb"BM.{4}\0{4}", "BMP", "convert it to PNG"),
    (rb"FUJIFILM|IIR[OS]|IIU\0|FOVb", "a camera's raw file", _CONVERT),
    (rb"II[*+]\0|MM\0[*+]", "TIFF or a camera's raw file", "convert it to PNG or JPEG"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", _CONVERT),
    (rb"\0\0\0\x0cjP {2}|\xff\x4f\xff\x51", "JPEG 2000", _CONVERT),
    (rb"8BPS", "a Photoshop file", _CONVERT),
    (rb"%PDF-", "PDF", "convert its pages to JPEG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", _CONVERT),
    (rb"\0\0[\x02\x03\x0a\x0b]\0{5}", "TGA", "convert it to PNG"),
    (rb"\0\0[\x01\x02]\0", "an icon", "convert it to PNG"),
    (rb"P[1-7]\s", "a PNM image", "convert it to PNG"),
    (rb"qoif", "QOI", "convert it to PNG"),
    (rb"v/1\x01|#\?RADIANCE", "a high dynamic range image", _CONVERT),
    (rb".{128}DICM", "DICOM", "convert it to PNG"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive", "send the images that are in it"),
    (rb"(?i)\s*<(?:svg|!DOCTYPE svg|(?:\?xml|!--).*<svg)", "SVG", "convert it to PNG"),
    (rb"(?i)\s*(?:<!doctype html|<html)", "an HTML page", "send the image itself"),
    (rb"https?://\S+\s*$", "a URL", "send the image itself: URLs are not fetched"),
    (rb"data:image/", "a data: URL", "send the decoded bytes"),
    (rb"/9j/|iVBORw0KGgo|UklGR", "an image in base64", "send the decoded bytes"),
    (rb"version https://git-lfs", "a Git LFS pointer", "fetch the file with `git lfs pull`"),
    (rb"\s*[{\[]", "JSON", "send the image as a form file or as the body"),
)
# Of images in these formats, as cameras and tools name them.
UNREAD_SUFFIXES = frozenset((
    ".heic", ".heif", ".avif", ".gif", ".jxl", ".jp2", ".j2k", ".mpo", ".dng", ".cr2", ".cr3",
    ".nef", ".arw", ".orf", ".raf", ".rw2", ".psd", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi",
    ".exr", ".hdr", ".dcm", ".ico", ".svg",
))  # fmt: skip
_START_BYTES = 1024  # examined at the start of a file
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PATTERNS = [(re.compile(start, re.DOTALL), name, advice) for start, name, advice in _SIGNATURES]


def describe_content(data: bytes) -> str:
    """The format of the bytes and what to do, as in "HEIC; convert it to JPEG"."""
    start = _without_mark(data[:_START_BYTES])
    for pattern, name, advice in _PATTERNS:
        if pattern.match(start):
            return f"{name}; {advice}"
    return f"content of an unknown kind (it starts with {data[:8]!r})"


def _without_mark(start: bytes) -> bytes:
    """A text that begins with a byte order mark in UTF-8 without it; other bytes as they are."""
    for mark, encoding in _ENCODINGS:
        if start.startswith(mark):
            return start.removeprefix(mark).decode(encoding, "ignore").encode()
    return start
