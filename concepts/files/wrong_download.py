"""What people often have in the place of a model file: a pointer of Git LFS, a web page, nothing at all."""

_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head")


def wrong_download(start: bytes) -> str | None:
    """What a file is that begins with `start`, and what to do about it; None where it may be a model.

    The words continue a sentence that begins with the file's name.
    """
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty (0 bytes): the download was cut off before it began; download it again"
    if head.startswith(_LFS):
        return (
            "is a pointer of Git LFS, not the file itself: run `git lfs install` and `git lfs pull` in its folder, "
            "or download the file by its link"
        )
    if head.startswith(_PAGES):
        return (
            "is a web page, not a model: the download link led to a page, perhaps a sign-in; "
            "open the link in a browser, sign in where it asks, and download the file again"
        )
    if head.startswith((b'{"error', b'{"message')) or head.startswith(b"entry not found"):
        return "is an answer of a server that refused the download; sign in there, and download the file again"
    return None
