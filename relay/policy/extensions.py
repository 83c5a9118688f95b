"""The MIME types by which mail programs open files that are sent without one, by the ends of their names.
Standard: IANA's media types; a table of what rules name, since the tables of systems and Python's versions differ.
"""

from __future__ import annotations

from collections.abc import Iterable

GENERIC = frozenset({"application/octet-stream", "text/plain"})
"""Types that say nothing, or stand for none: mail programs go by the name then."""

_OFFICE = "application/vnd.openxmlformats-officedocument."
_OPEN = "application/vnd.oasis.opendocument."
_TYPES = {
    "application/pdf": "pdf", "application/postscript": "ps eps ai", "application/rtf": "rtf", "application/xml": "xml", "application/json": "json",
    "application/msword": "doc dot", "application/vnd.ms-excel": "xls xlt", "application/vnd.ms-powerpoint": "ppt pps pot",
    _OFFICE + "wordprocessingml.document": "docx", _OFFICE + "wordprocessingml.template": "dotx", _OFFICE + "spreadsheetml.sheet": "xlsx",
    _OFFICE + "spreadsheetml.template": "xltx", _OFFICE + "presentationml.presentation": "pptx", _OFFICE + "presentationml.slideshow": "ppsx",
    "application/vnd.ms-word.document.macroenabled.12": "docm", "application/vnd.ms-excel.sheet.macroenabled.12": "xlsm",
    "application/vnd.ms-excel.sheet.binary.macroenabled.12": "xlsb", "application/vnd.ms-powerpoint.presentation.macroenabled.12": "pptm",
    _OPEN + "text": "odt", _OPEN + "spreadsheet": "ods", _OPEN + "presentation": "odp", _OPEN + "graphics": "odg",
    "application/vnd.ms-outlook": "msg", "application/vnd.visio": "vsd", "application/vnd.sqlite3": "sqlite db", "application/epub+zip": "epub",
    "application/zip": "zip", "application/x-7z-compressed": "7z", "application/x-rar-compressed": "rar", "application/x-tar": "tar",
    "application/gzip": "gz tgz", "application/x-bzip2": "bz2", "application/x-xz": "xz", "application/java-archive": "jar",
    "application/x-msdownload": "exe dll com bat msi", "application/vnd.android.package-archive": "apk", "application/x-sh": "sh",
    "application/javascript": "js", "application/pkcs7-mime": "p7m p7c", "application/pkcs7-signature": "p7s", "application/x-pkcs12": "p12 pfx",
    "application/pgp-encrypted": "pgp", "application/dicom": "dcm", "application/acad": "dwg", "application/x-iso9660-image": "iso",
    "image/png": "png", "image/jpeg": "jpg jpeg jpe", "image/gif": "gif", "image/bmp": "bmp", "image/tiff": "tif tiff", "image/webp": "webp",
    "image/svg+xml": "svg svgz", "image/heic": "heic", "image/heif": "heif", "image/avif": "avif", "image/vnd.adobe.photoshop": "psd",
    "image/vnd.dwg": "dwg", "image/vnd.dxf": "dxf", "image/x-icon": "ico", "model/step": "step stp", "model/stl": "stl",
    "audio/mpeg": "mp3 mp2", "audio/wav": "wav", "audio/ogg": "ogg oga opus", "audio/flac": "flac", "audio/mp4": "m4a", "audio/aac": "aac", "audio/midi": "mid midi",
    "video/mp4": "mp4 m4v", "video/quicktime": "mov qt", "video/x-msvideo": "avi", "video/x-matroska": "mkv", "video/webm": "webm", "video/mpeg": "mpg mpeg",
    "video/x-ms-wmv": "wmv", "text/html": "html htm", "text/csv": "csv", "text/calendar": "ics", "text/vcard": "vcf", "text/xml": "xml",
    "text/javascript": "js", "text/css": "css", "text/markdown": "md", "text/tab-separated-values": "tsv", "text/rtf": "rtf", "message/rfc822": "eml",
}  # fmt: skip
_BY_EXTENSION: dict[str, tuple[str, ...]] = {}
for _type, _extensions in _TYPES.items():
    for _extension in _extensions.split():
        _BY_EXTENSION[_extension] = (*_BY_EXTENSION.get(_extension, ()), _type)


def types_of(names: Iterable[str]) -> tuple[str, ...]:
    """The types that files of these names (in lower case) are opened as."""
    return tuple(dict.fromkeys(kind for name in names for kind in _BY_EXTENSION.get(name.rpartition(".")[2], ())))
