"""Detection of failed downloads of model files: a Git LFS pointer, a web page, an empty file."""

_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head")


def wrong_download(start: bytes) -> str | None:
    """Cause and remedy for a file that begins with `start`; None if it may be a model.

    The text continues a sentence that begins with the name of the file.
    """
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty (0 bytes): the download failed; download it again"
    if head.startswith(_LFS):
        return (
            "is a pointer of Git LFS, not the file itself: run `git lfs install` and `git lfs pull` in its folder, "
            "or download the file by its link"
        )
    if head.startswith(_PAGES):
        return (
            "is a web page, not a model: the download link led to a page, perhaps a sign-in; "
            "open the link in a browser, sign in if required, and download the file again"
        )
    if head.startswith((b'{"error', b'{"message')) or head.startswith(b"entry not found"):
        return (
            "is an error message of the server, which refused the download; sign in there, and download the file again"
        )
    return None
