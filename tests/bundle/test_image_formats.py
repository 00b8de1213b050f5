"""What a client learns about a file that is refused."""

import pytest

from bundle.image_formats import describe_content


@pytest.mark.parametrize(
    ("start", "description"),
    [
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "HEIC; convert it to JPEG"),
        (b"\0\0\0\x24ftypmif1\0\0\0\0mif1heic", "HEIF; convert it to JPEG"),
        (b"\0\0\0\x24ftypmif1\0\0\0\0mif1avif", "AVIF; convert it to JPEG"),
        (b"\0\0\0\x24ftypavif\0\0\0\0", "AVIF; convert it to JPEG"),
        (b"\0\0\0\x18ftypcrx ", "a Canon raw file; convert it to JPEG"),
        (b"\0\0\0\x18ftypisom", "a video; send single frames as JPEG"),
        (b"\x1aE\xdf\xa3", "a video; send single frames as JPEG"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "a video; send single frames as JPEG"),
        (b"\0\0\x10\x08moov\0\0\0\x6cmvhd", "a video; send single frames as JPEG"),
        (b"FLV\x01\x05", "a video; send single frames as JPEG"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6", "a video; send single frames as JPEG"),
        (b"\0\0\x01\xbaD", "a video; send single frames as JPEG"),
        ((b"G@" + b"\0" * 186) * 2, "a video; send single frames as JPEG"),
        (b"II*\0\x10\0\0\0CR", "TIFF or a camera's raw file; convert it to PNG or JPEG"),
        (b"FUJIFILMCCD-RAW 0201", "a camera's raw file; convert it to JPEG"),
        (b"IIRO\x08\0\0\0", "a camera's raw file; convert it to JPEG"),
        (b"\0\0\2" + b"\0" * 9 + b"\x10\0\x10\0", "TGA; convert it to PNG"),
        (b"\0\0\2\0\1\0 ", "an icon; convert it to PNG"),
        (b"\xff\x0a\xfa", "JPEG XL; convert it to JPEG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL; convert it to JPEG"),
        (b"8BPS\0\1", "a Photoshop file; convert it to JPEG"),
        (b"%PDF-1.7", "PDF; convert its pages to JPEG"),
        (b"<svg xmlns=''>", "SVG; convert it to PNG"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg>", "SVG; convert it to PNG"),
        (b"\xef\xbb\xbf<svg>", "SVG; convert it to PNG"),
        ("\ufeff<svg>".encode("utf-16-le"), "SVG; convert it to PNG"),
        ("\ufeff<svg>".encode("utf-16-be"), "SVG; convert it to PNG"),
        (b"\0" * 128 + b"DICM", "DICOM; convert it to PNG"),
        (b"PK\3\4", "an archive; send the images that are in it"),
        (b"<!DOCTYPE html><html>", "an HTML page; send the image itself"),
        (b"https://test/a.jpg", "a URL; send the image itself: URLs are not fetched"),
        (b"data:image/png;base64,", "a data: URL; send the decoded bytes"),
        (b"/9j/4AAQ", "an image in base64; send the decoded bytes"),
        (b'{"image": ""}', "JSON; send the image as a form file or as the body"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer; fetch the file with `git lfs pull`",
        ),
        (b"hello, world", "content of an unknown kind (it starts with b'hello, w')"),
        (b"\xff\xd8", "content of an unknown kind (it starts with b'\\xff\\xd8')"),
        (
            b"\xef\xbb\xbf\xff\xd8\xff",
            "content of an unknown kind (it starts with b'\\xef\\xbb\\xbf\\xff\\xd8\\xff')",
        ),
        (b"", "content of an unknown kind (it starts with b'')"),
    ],
    ids=lambda value: value[:16] if isinstance(value, str) else "",
)
def test_a_file_is_named_with_what_to_do(start: bytes, description: str) -> None:
    assert describe_content(start) == description
