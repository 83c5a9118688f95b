"""Ways to write the file name and the type of an attachment.
Standard: RFC 2183, RFC 2231, RFC 2047; what mail programs and operating systems make of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.testlib.spellings.spelling import Spelling, b, b64, mail, q

NAME = "plan.docx"

DISPOSITIONS = {
    "as it is": b'attachment; filename="plan.docx"',
    "without quotes": b"attachment; filename=plan.docx",
    "without quotes, a comma behind": b"attachment; filename=plan.docx,y",
    "RFC 2231, the eighth bit of ASCII set": b"attachment; filename*=us-ascii''plan%AEdocx",
    "in capitals": b'ATTACHMENT; FILENAME="PLAN.DOCX"',
    "in single quotes": b"attachment; filename='plan.docx'",
    "inline": b'inline; filename="plan.docx"',
    "no disposition": b'filename="plan.docx"',
    "no disposition but a semicolon": b'; filename="plan.docx"',
    "an unknown disposition": b'x-other; filename="plan.docx"',
    "blanks around =": b'attachment; filename = "plan.docx"',
    "blanks before the semicolon": b'attachment ; filename="plan.docx" ;',
    "no blank behind the semicolon": b'attachment;filename="plan.docx";size=5',
    "two semicolons": b'attachment;; filename="plan.docx"',
    "folded": b'attachment;\r\n\tfilename="plan.docx"',
    "folded behind =": b'attachment; filename=\r\n "plan.docx"',
    "folded in the name": b'attachment; filename="my\r\n plan.docx"',
    "a comment before": b'attachment (x); filename="plan.docx"',
    "a comment behind": b'attachment; filename="plan.docx" (x)',
    "a comment behind, no quotes": b"attachment; filename=plan.docx (x)",
    "a comment before =": b'attachment; filename (x) ="plan.docx"',
    "a comment behind =": b'attachment; filename= (x) "plan.docx"',
    "text behind the quotes": b'attachment; filename="plan.docx"x',
    "text behind the quotes and a blank": b'attachment; filename="plan.docx" x; a=b',
    "a second quoted text": b'attachment; filename="plan.docx" "x"',
    "no semicolon between parameters": b'attachment; size=5 filename="plan.docx"',
    "no semicolon behind the disposition": b'attachment filename="plan.docx"',
    "a comma between parameters": b'attachment, filename="plan.docx"',
    "a quoted text that does not end": b'attachment; filename="plan.docx',
    "a quoted text that does not begin": b'attachment; filename=plan.docx"',
    "a backslash in the name": rb'attachment; filename="plan.do\cx"',
    "a backslash before the last letter": rb'attachment; filename="plan.doc\x"',
    "backslashes before each letter": rb'attachment; filename="\p\l\a\n\.\d\o\c\x"',
    "a backslash before the quote": rb'attachment; filename="plan.docx\"',
    "a path of Windows": rb'attachment; filename="C:\plans\plan.docx"',
    "a path of Windows without quotes": rb"attachment; filename=C:\plans\plan.docx",
    "a path": b'attachment; filename="/tmp/plan.docx"',
    "a quote in the name": rb'attachment; filename="a\"b plan.docx"',
    "a quoted text before, with a backslash": rb'attachment; x="\\"; filename="plan.docx"',
    "a quoted text before, with a quote": rb'attachment; x="\""; filename="plan.docx"',
    "a quoted text before, with a semicolon": b'attachment; x="a;b"; filename="plan.docx"',
    "a quoted text before that does not end": b'attachment; x="a; filename="plan.docx"',
    "a parameter without = before": b'attachment; x; filename="plan.docx"',
    "an empty parameter before": b'attachment; x=; filename="plan.docx"',
    "another name before": b'attachment; filename="a.txt"; filename="plan.docx"',
    "another name behind": b'attachment; filename="plan.docx"; filename="a.txt"',
    "an empty name before": b'attachment; filename=""; filename="plan.docx"',
    "the parameter name": b'attachment; name="plan.docx"',
    "a question mark in the name": b'attachment; filename="what?.docx"',
    "in angle brackets": b"attachment; filename=<plan.docx>",
    "a semicolon in the name": b'attachment; filename="a;plan.docx"',
    "blanks in the name, no quotes": b"attachment; filename=my plan.docx",
    "a tab in the name": b'attachment; filename="my\tplan.docx"',
    "RFC 2231": b"attachment; filename*=utf-8''plan.docx",
    "RFC 2231, every octet": b"attachment; filename*=utf-8''%70%6c%61%6e%2e%64%6f%63%78",
    "RFC 2231 in quotes": b"attachment; filename*=\"utf-8''plan%2Edocx\"",
    "RFC 2231 with a language": b"attachment; filename*=utf-8'en'plan%2Edocx",
    "RFC 2231 with one quote": b"attachment; filename*=utf-8'plan%2Edocx",
    "RFC 2231 without quotes": b"attachment; filename*=plan%2Edocx",
    "RFC 2231 without charset": b"attachment; filename*=''plan%2Edocx",
    "RFC 2231, charset unknown": b"attachment; filename*=x-none''plan%2Edocx",
    "RFC 2231, charset us-ascii with 8 bits": b"attachment; filename*=us-ascii''pl%E4n.docx",
    "RFC 2231, charset unicode": b"attachment; filename*=unicode''p%00l%00a%00n%00.%00d%00o%00c%00x%00",
    "RFC 2231, charset utf-16": b"attachment; filename*=utf-16''%FF%FEp%00.%00d%00o%00c%00x%00",
    "RFC 2231, charset utf-16be": b"attachment; filename*=utf-16be''%00p%00.%00d%00o%00c%00x",
    "RFC 2231, charset utf-7": b"attachment; filename*=utf-7''plan+AC4-docx",
    "RFC 2231 with blanks": b"attachment; filename* = utf-8''plan.docx",
    "RFC 2231 before a plain name": b"attachment; filename*=utf-8''plan.docx; filename=a.txt",
    "RFC 2231 behind a plain name": b"attachment; filename=a.txt; filename*=utf-8''plan.docx",
    "a plain name before RFC 2231": b"attachment; filename=plan.docx; filename*=utf-8''a.txt",
    "RFC 2231 with a broken escape": b"attachment; filename*=utf-8''plan%2.docx",
    "RFC 2231 in capitals": b"attachment; FileName*=UTF-8''plan.docx",
    "cut": b'attachment; filename*0="plan"; filename*1=".docx"',
    "cut and encoded": b"attachment; filename*0*=utf-8''plan; filename*1*=%2Edocx",
    "cut, the first encoded": b"attachment; filename*0*=utf-8''plan%2E; filename*1=docx",
    "cut, the second encoded": b"attachment; filename*0=plan; filename*1*=%2Edocx",
    "cut, in disorder": b'attachment; filename*1=".docx"; filename*0="plan"',
    "cut, numbers with zeros": b'attachment; filename*00="plan"; filename*01=".docx"',
    "cut, begun at one": b'attachment; filename*1="plan"; filename*2=".docx"',
    "cut, a number left out": b'attachment; filename*0="plan"; filename*2=".docx"',
    "cut, a number twice": b'attachment; filename*0="plan"; filename*1=".docx"; filename*1=".txt"',
    "cut, a number twice, the last": b'attachment; filename*0="plan"; filename*1=".txt"; filename*1=".docx"',
    "cut within an escape": b"attachment; filename*0*=utf-8''plan%2; filename*1*=Edocx",
    "cut, only one": b'attachment; filename*0="plan.docx"',
    "cut, folded": b'attachment;\r\n filename*0="plan";\r\n filename*1=".docx"',
    "cut into many": b"attachment; " + b"; ".join(b"filename*%d=%c" % (at, char) for at, char in enumerate(NAME.encode())),
    "cut, with a plain name": b'attachment; filename="a.txt"; filename*0="plan"; filename*1=".docx"',
    "an encoded word": b'attachment; filename="' + q(NAME, every=True) + b'"',
    "an encoded word, B": b'attachment; filename="' + b(NAME) + b'"',
    "an encoded word without quotes": b"attachment; filename=" + q(NAME, every=True),
    "encoded words without quotes": b"attachment; filename=" + q("plan") + b" " + q(".docx"),
    "encoded words, folded": b'attachment; filename="' + q("plan") + b"\r\n " + q(".docx") + b'"',
    "encoded words without a blank": b'attachment; filename="' + q("plan") + q(".docx") + b'"',
    "an encoded word before plain text": b'attachment; filename="' + q("pl\u00e4ne") + b'.docx"',
    "an encoded word with blanks": b'attachment; filename="=?utf-8?Q?my plan.docx?="',
    "an encoded word with raw octets": "attachment; filename=\"=?utf-8?Q?pl\u00e4ne=2Edocx?=\"".encode(),
    "an encoded word of no base64 before": b'attachment; filename="=?utf-8?B?!?= plan.docx"',
    "encoded words cut within four characters": b'attachment; filename="=?utf-8?B?' + b64(NAME)[:6] + b"?= =?utf-8?B?" + b64(NAME)[6:] + b'?="',
    "an encoded word in RFC 2231": b"attachment; filename*=utf-8''" + q(NAME).replace(b"?", b"%3F"),
    "an encoded word, cut": b'attachment; filename*0="=?utf-8?Q?plan"; filename*1="=2Edocx?="',
    "an encoded word with a question mark": b'attachment; filename="=?utf-8?Q?what? plan=2Edocx?="',
    "an encoded word, unknown charset": b'attachment; filename="' + b(NAME, "x-none") + b'"',
    "an encoded word, utf-16": b'attachment; filename="' + b(NAME.encode("utf-16-le"), "unicode") + b'"',
    "an encoded word with a NUL": b'attachment; filename="' + q(NAME + "\0.txt", every=True) + b'"',
    "an encoded word with = at the end": b'attachment; filename="=?utf-8?Q?plan.docx=?="',
    "an encoded word with padding within": b'attachment; filename="=?utf-8?B?' + b64("plan.docx1").rstrip(b"=") + b'=?="',
    "a dot behind": b'attachment; filename="plan.docx."',
    "dots behind": b'attachment; filename="plan.docx..."',
    "a blank behind": b'attachment; filename="plan.docx "',
    "blanks and dots behind": b'attachment; filename="plan.docx . . "',
    "a blank before": b'attachment; filename=" plan.docx"',
    "a NUL": b'attachment; filename="plan.docx\0.txt"',
    "a NUL, no quotes": b"attachment; filename=plan.docx\0.txt",
    "a NUL behind a comment": b'attachment; filename=(x)"plan.docx\0".txt',
    "a NUL in a section": b'attachment; filename*0="plan.docx\0"; filename*1=".txt"',
    "an escaped NUL behind": b'attachment; filename="plan.docx%00.txt"',
    "an escaped NUL at the end": b'attachment; filename="plan.docx%00"',
    "an escaped dot": b'attachment; filename="plan%2edocx"',
    "escaped": b'attachment; filename="%70%6C%61%6E%2E%64%6F%63%78"',
    "escaped in RFC 2231 twice": b"attachment; filename*=utf-8''plan%252Edocx",
    "a stream of NTFS": b'attachment; filename="plan.docx::$DATA"',
    "a full-width dot": "attachment; filename=\"plan\uff0edocx\"".encode(),
    "a one dot leader": "attachment; filename=\"plan\u2024docx\"".encode(),
    "full-width letters": "attachment; filename=\"plan.\uff44\uff4f\uff43\uff58\"".encode(),
    "a zero width space": "attachment; filename=\"plan.do\u200bcx\"".encode(),
    "a zero width space at the end": "attachment; filename=\"plan.docx\u200b\"".encode(),
    "a soft hyphen": "attachment; filename=\"plan.d\u00adocx\"".encode(),
    "a right-to-left mark": "attachment; filename=\"plan.docx\u200f\"".encode(),
    "a right-to-left override": "attachment; filename=\"plan\u202excod.\"".encode(),
    "a no-break space at the end": "attachment; filename=\"plan.docx\u00a0\"".encode(),
    "a control character": b'attachment; filename="plan.do\x07cx"',
    "raw Latin-1": b'attachment; filename="pl\xe4n.docx"',
    "raw UTF-8": "attachment; filename=\"pl\u00e4n.docx\"".encode(),
    "octets that are no UTF-8": b'attachment; filename="plan.do\xffcx"',
}  # fmt: skip
"""Values of Content-Disposition; the rule is for `*.docx`."""

TYPES = {
    "name of the type": b'application/octet-stream; name="plan.docx"',
    "name of the type, without quotes": b"application/octet-stream; name=plan.docx",
    "name of a text": b'text/plain; charset=utf-8; name="plan.docx"',
    "name of the type, RFC 2231": b"application/octet-stream; name*=utf-8''plan%2Edocx",
    "name of the type, cut": b'application/octet-stream; name*0="plan."; name*1="docx"',
    "name of the type, an encoded word": b'application/octet-stream; name="' + q(NAME, every=True) + b'"',
    "name of the type, a comment before": b'application/octet-stream (x); name="plan.docx"',
    "name of the type, no type": b'; name="plan.docx"',
    "name of the type, no subtype": b'application; name="plan.docx"',
    "filename of the type": b'application/octet-stream; filename="plan.docx"',
    "name of a message": b'message/rfc822; name="plan.docx"',
}

PARTS = {
    "both names, the first": b'Content-Type: a/b; name="a.txt"\r\nContent-Disposition: attachment; filename="plan.docx"',
    "both names, the second": b'Content-Type: a/b; name="plan.docx"\r\nContent-Disposition: attachment; filename="a.txt"',
    "a second disposition": b'Content-Disposition: attachment; filename="a.txt"\r\nContent-Disposition: attachment; filename="plan.docx"',
    "a second type": b'Content-Type: a/b\r\nContent-Type: a/b; name="plan.docx"',
    "a blank before the colon": b'Content-Disposition : attachment; filename="plan.docx"',
    "a fold before the colon": b'Content-Disposition\r\n : attachment; filename="plan.docx"',
    "a no-break space before the colon": b'Content-Disposition\xa0: attachment; filename="plan.docx"',
    "a line of no field before": b'no field\r\nContent-Disposition: attachment; filename="plan.docx"',
    "Content-Name": b"Content-Type: a/b\r\nContent-Name: plan.docx",
    "X-Sun-Data-Name": b"Content-Type: a/b\r\nX-Sun-Data-Name: plan.docx",
    "the disposition in capitals": b'CONTENT-DISPOSITION: attachment; filename="plan.docx"',
    "the disposition before the type": b'Content-Disposition: attachment; filename="plan.docx"\r\nContent-Type: a/b',
}


def with_part(header: bytes) -> bytes:
    """A message with a text and a part of this header."""
    body = b"--b\r\n\r\ntext\r\n--b\r\n" + header + b"\r\n\r\nx\r\n--b--\r\n"
    return mail(b"Subject: x", b"MIME-Version: 1.0", b'Content-Type: multipart/mixed; boundary="b"', body=body)


def spellings() -> Iterator[Spelling]:
    """All of them."""
    for name, value in DISPOSITIONS.items():
        part = b"Content-Type: application/x-office\r\nContent-Disposition: " + value
        yield Spelling(name, "attachment_name", "*.docx", with_part(part))
    for name, value in TYPES.items():
        yield Spelling(name, "attachment_name", "*.docx", with_part(b"Content-Type: " + value))
    for name, part in PARTS.items():
        yield Spelling(name, "attachment_name", "*.docx", with_part(part))
    for name in ("as it is", "RFC 2231", "cut", "an encoded word", "a dot behind", "a comment behind"):
        value = DISPOSITIONS[name]
        yield Spelling(f"whole, {name}", "attachment_name", "plan.docx", with_part(b"Content-Disposition: " + value))
        yield Spelling(f"of the message itself, {name}", "attachment_name", "*.docx",
                       mail(b"Content-Type: application/x-office", b"Content-Disposition: " + value))  # fmt: skip
    umlaut = "*Gr\u00f6\u00dfe*.docx"
    for name, value in {
        "raw UTF-8": 'filename="die Gr\u00f6\u00dfe.docx"'.encode(), "raw Latin-1": b'filename="die Gr\xf6\xdfe.docx"',
        "decomposed": 'filename="die Gro\u0308\u00dfe.docx"'.encode(), "RFC 2231": b"filename*=utf-8''die%20Gr%C3%B6%C3%9Fe.docx",
        "RFC 2231, Latin-1": b"filename*=iso-8859-1''die%20Gr%F6%DFe.docx", "RFC 2231, us-ascii": b"filename*=us-ascii''Gr%F6%DFe.docx",
        "RFC 2231, us-ascii and UTF-8": b"filename*=us-ascii''Gr%C3%B6%C3%9Fe.docx", "RFC 2231, no charset": b"filename*=''Gr%C3%B6%C3%9Fe.docx",
        "RFC 2231, win-1252": b"filename*=win-1252''Gr%F6%DFe.docx", "RFC 2231, unknown": b"filename*=x-none''Gr%C3%B6%C3%9Fe.docx",
        "RFC 2231, cut within a letter": b"filename*0*=utf-8''Gr%C3; filename*1*=%B6%C3%9Fe.docx",
        "Q": b'filename="' + q("Gr\u00f6\u00dfe.docx") + b'"', "B": b'filename="' + b("Gr\u00f6\u00dfe.docx") + b'"',
        "Q, cut within a letter": b'filename="' + q(b"Gr\xc3") + b" " + q(b"\xb6\xc3\x9fe.docx") + b'"',
        "Q, Latin-1": b'filename="' + q("Gr\u00f6\u00dfe.docx".encode("latin-1"), "iso-8859-1") + b'"',
        "percent signs in a plain name": b'filename="Gr%C3%B6%C3%9Fe.docx"',
    }.items():  # fmt: skip
        yield Spelling(
            f"umlaut: {name}", "attachment_name", umlaut, with_part(b"Content-Disposition: attachment; " + value)
        )
