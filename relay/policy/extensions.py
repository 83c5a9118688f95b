"""The MIME types that mail programs assume by file name extension for files sent without one.
Standard: IANA's media types; a fixed table, since those of systems and Python versions differ.
"""

from __future__ import annotations

from collections.abc import Iterable

GENERIC = frozenset({"application/octet-stream", "text/plain"})
"""Types for which mail programs go by the file name."""

_TABLE = """
application/pdf                  pdf
application/postscript           ps eps ai
application/rtf                  rtf
text/rtf                         rtf
application/xml                  xml
text/xml                         xml
application/json                 json
application/msword               doc dot
application/vnd.ms-excel         xls xlt
application/vnd.ms-powerpoint    ppt pps pot
application/vnd.openxmlformats-officedocument.wordprocessingml.document      docx
application/vnd.openxmlformats-officedocument.wordprocessingml.template      dotx
application/vnd.openxmlformats-officedocument.spreadsheetml.sheet            xlsx
application/vnd.openxmlformats-officedocument.spreadsheetml.template         xltx
application/vnd.openxmlformats-officedocument.presentationml.presentation    pptx
application/vnd.openxmlformats-officedocument.presentationml.slideshow       ppsx
application/vnd.ms-word.document.macroenabled.12             docm
application/vnd.ms-excel.sheet.macroenabled.12               xlsm
application/vnd.ms-excel.sheet.binary.macroenabled.12        xlsb
application/vnd.ms-powerpoint.presentation.macroenabled.12   pptm
application/vnd.oasis.opendocument.text            odt
application/vnd.oasis.opendocument.spreadsheet     ods
application/vnd.oasis.opendocument.presentation    odp
application/vnd.oasis.opendocument.graphics        odg
application/vnd.ms-outlook       msg
application/vnd.visio            vsd
application/epub+zip             epub
application/zip                  zip
application/x-7z-compressed      7z
application/vnd.rar              rar
application/x-rar-compressed     rar
application/x-tar                tar
application/gzip                 gz tgz
application/x-bzip2              bz2
application/x-xz                 xz
application/java-archive         jar
application/x-msdownload         exe dll com bat msi
application/x-sh                 sh
application/javascript           js
text/javascript                  js
application/pkcs7-mime           p7m p7c
application/pkcs7-signature      p7s
application/x-pkcs12             p12 pfx
application/dicom                dcm
application/acad                 dwg
image/vnd.dwg                    dwg
image/vnd.dxf                    dxf
model/step                       step stp
model/stl                        stl
image/png                        png
image/jpeg                       jpg jpeg jpe
image/gif                        gif
image/bmp                        bmp
image/tiff                       tif tiff
image/webp                       webp
image/svg+xml                    svg svgz
image/heic                       heic
image/heif                       heif
image/avif                       avif
image/vnd.adobe.photoshop        psd
image/x-icon                     ico
audio/mpeg                       mp3 mp2
audio/wav                        wav
audio/ogg                        ogg oga opus
audio/flac                       flac
audio/mp4                        m4a
audio/aac                        aac
video/mp4                        mp4 m4v
video/quicktime                  mov qt
video/x-msvideo                  avi
video/x-matroska                 mkv
video/webm                       webm
video/mpeg                       mpeg mpg
video/x-ms-wmv                   wmv
text/html                        html htm
text/csv                         csv
text/calendar                    ics
text/vcard                       vcf
text/markdown                    md
message/rfc822                   eml
"""


def _by_extension() -> dict[str, tuple[str, ...]]:
    types: dict[str, tuple[str, ...]] = {}
    for line in _TABLE.strip().splitlines():
        kind, *extensions = line.split()
        for extension in extensions:
            types[extension] = (*types.get(extension, ()), kind)
    return types


_TYPES = _by_extension()


def types_of(names: Iterable[str]) -> tuple[str, ...]:
    """The types as which files of these names (in lower case) are opened."""
    return tuple(dict.fromkeys(kind for name in names for kind in _TYPES.get(name.rpartition(".")[2], ())))
