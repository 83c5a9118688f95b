"""Ordinary mail in many languages and character sets, as programs write it, in which there is nothing that a rule names.
Standard: what mail programs send every day, some of their faults included.
"""

from __future__ import annotations

from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP
from urllib.parse import quote

from tests.testlib.spellings.spelling import b, mail, q

SUBJECTS: tuple[tuple[str, str], ...] = (
    ("Besprechung am Donnerstag: Größenordnung und nächste Schritte für das Frühjahr", "iso-8859-1"),
    ("Réunion de jeudi: précisions à apporter au budget prévisionnel de l'année", "iso-8859-15"),
    ("Reunión del jueves: ¿qué presupuesto para el año próximo?", "windows-1252"),
    ("Reunião de quinta-feira: orçamento e situação", "utf-8"),
    ("Čtvrteční schůzka: příští kroky a rozpočet", "iso-8859-2"),
    ("Spotkanie w czwartek: następne kroki i budżet", "windows-1250"),
    ("Csütörtöki megbeszélés: következő lépések, költségvetés", "iso-8859-2"),
    ("Perşembe toplantısı: bütçe ve sonraki adımlar, ışık ve İstanbul", "iso-8859-9"),
    ("Встреча в четверг: следующие шаги и бюджет на весну", "koi8-r"),
    ("Встреча в четверг: следующие шаги и бюджет на весну", "windows-1251"),
    ("Зустріч у четвер: наступні кроки, їжа та ґрунт", "koi8-u"),
    ("Συνάντηση την Πέμπτη: προϋπολογισμός", "iso-8859-7"),
    ("פגישה ביום חמישי: תקציב", "windows-1255"),
    ("اجتماع يوم الخميس: الميزانية والخطوات التالية", "windows-1256"),
    ("جلسهٔ پنج‌شنبه: بودجه و گام‌های بعدی", "utf-8"),
    ("गुरुवार की बैठक: बजट और अगले कदम", "utf-8"),
    ("การประชุมวันพฤหัสบดี: งบประมาณ", "tis-620"),
    ("Họp thứ Năm: ngân sách và các bước tiếp theo", "utf-8"),
    ("周四会议：预算和后续步骤", "gb2312"),
    ("周四会议：预算和后续步骤，請確認", "gb18030"),
    ("週四會議：預算與後續步驟", "big5"),
    ("木曜日の会議：予算と次の手順について（更新）", "iso-2022-jp"),
    ("木曜日の会議：予算と次の手順について（更新）", "shift_jis"),
    ("木曜日の会議：予算と次の手順について（更新）", "utf-8"),
    ("목요일 회의: 예산과 다음 단계", "euc-kr"),
    ("목요일 회의: 예산과 다음 단계", "ks_c_5601-1987"),
    ("Party am Freitag 🎉🎂 – wer kommt? 👩‍👩‍👧‍👦 ❤️", "utf-8"),
    ("“Quotes” – dashes… ™ ½ № ﬁne", "utf-8"),
)  # fmt: skip

PLAIN_SUBJECTS = {
    "plain": b"Minutes of Thursday's meeting",
    "long and folded": b"Re: Fwd: AW: [list-users] Minutes of Thursday's meeting, next steps and budget\r\n for the spring [ticket #4711]",
    "folded by a tab": b"RE: Minutes of Thursday's meeting, next steps and\r\n\tthe budget for the spring",
    "empty": b"",
    "odd signs": b"=?what is this?= and 50% =? off? a=b&c=d ?=",
    "percent signs": b"100% sure: 20%20 off",
    "raw Latin-1": "Grüße aus Köln".encode("latin-1"),
    "raw UTF-8": "Grüße aus Köln: Δοκιμή, проверка, テスト".encode(),
    "raw Windows-1251": "Привет из Москвы".encode("cp1251"),
    "raw GBK": "你好，世界".encode("gbk"),
    "of charset unknown-8bit": b"=?unknown-8bit?Q?Gr=FC=DFe_aus_K=F6ln?=",
    "of charset x-unknown": b"=?x-unknown?B?R3L832UgYXVzIEv2bG4=?=",
    "of charset us-ascii with 8 bits": b"=?us-ascii?Q?Gr=FC=DFe_aus_K=F6ln?=",
    "of charset ISO-8859-8-I": b"=?ISO-8859-8-I?B?+ezl7Q==?=",
    "of a charset that names a codec of Python": b("[frperg]", "rot13"),
    "broken base64": b"=?utf-8?B?SGVsbG8gd29ybGQ?= =?utf-8?B?IQ?=",
    "cut within a letter": q(b"Gr\xc3") + b"\r\n " + q(b"\xbc\xc3\x9fe"),
    "blanks in a word": b"=?utf-8?Q?Hello there, how are you??=",
    "a word in quotes": b'"=?utf-8?Q?Gr=C3=BC=C3=9Fe?=" from Cologne',
    "an advertisement": b"=?UTF-8?Q?=F0=9F=94=A5_Nur_heute:_50%_auf_alles!_?= =?UTF-8?Q?=F0=9F=94=A5?=",
    "secretary": b"The secretary's secrets (top, secret ingredients)",
    "brackets": b"[secre t] [ secret ] [sec-ret] [Top  Secrets] (secret)",
}

NAMES = (
    "report (1).xlsx", "Größe & Preis 100%.ods", "Отчёт за март.xlsx", "報告書　最終版.pptx", "見積書（改）.zip", "résumé.odt", "a b c.txt", "naïve;file.csv",
    "it's \"quoted\".wav", "تقرير.mp3", "보고서.hwp", "x" * 120 + ".xlsx", "docx.txt", "plan.docx.zip", "my.doc", "smime.p7s", "noextension", "50% off.txt",
    "..bashrc", "C# notes.txt", "invoice_2026-11-26T10:00.csv",
)  # fmt: skip

BOUNDARIES = (
    b'"----=_Part_123_456.789"', b"0000000000001a2b3c05f", b'"Apple-Mail=_C1A2B3C4-D5E6"', b'"=_mixed 0050C3D2"', b'"===============0123456789=="',
    b'"_004_AM0PR01MB1234AM0PR01MB_"', b"--boundary", b'"=-abc+def/ghi:jkl"', b'"b.(1)"', b'"a_\'()+_,-./:=?z"',
)  # fmt: skip

AUTHORS: dict[str, bytes] = {
    "bare": b"clerk@bank.example",
    "in angle brackets": b"<clerk@bank.example>",
    "a name": b"Ann Clerk <clerk@bank.example>",
    "a name in quotes": b'"Ann Clerk" <clerk@bank.example>',
    "a comma in quotes": b'"Clerk, Ann" <clerk@bank.example>',
    "a comma without quotes": b"Clerk, Ann <clerk@bank.example>",
    "two commas without quotes": b"Clerk, Ann, Dr. <clerk@bank.example>",
    "a company": b"Bank, Inc. <clerk@bank.example>",
    "brackets": b"[Jira] <clerk@bank.example>",
    "brackets and a name": b"Ann Clerk [Bank] <clerk@bank.example>",
    "brackets in quotes": b'"[Jira] Ann" <clerk@bank.example>',
    "a colon": b"Jira: Ann Clerk <clerk@bank.example>",
    "a semicolon": b"Clerk; Ann <clerk@bank.example>",
    "a dot": b"Ann B. Clerk <clerk@bank.example>",
    "a dot at the beginning": b".NET Team <clerk@bank.example>",
    "a dot at the end": b"Ann Clerk jun. <clerk@bank.example>",
    "an apostrophe": b"Ann O'Clerk <clerk@bank.example>",
    "single quotes": b"'Ann Clerk' <clerk@bank.example>",
    "single quotes around a comma": b"'Clerk, Ann' <clerk@bank.example>",
    "quotes in quotes": b'"Ann \\"Annie\\" Clerk" <clerk@bank.example>',
    "quotes in the middle": b'Ann "Annie" Clerk <clerk@bank.example>',
    "quotes and brackets": b'"Ann Clerk" [Bank] <clerk@bank.example>',
    "a slash and a bar": b"Ann Clerk / Bank | Loans <clerk@bank.example>",
    "an ampersand and a plus": b"Ann & Ben + Co <clerk@bank.example>",
    "a backslash": b"BANK\\ann <clerk@bank.example>",
    "no blank before the address": b"Ann Clerk<clerk@bank.example>",
    "two blanks": b"Ann  Clerk  <clerk@bank.example> ",
    "a tab": b"Ann\tClerk <clerk@bank.example>",
    "folded": b"Ann Clerk\r\n <clerk@bank.example>",
    "folded by a tab": b"Ann\r\n\tClerk <clerk@bank.example>",
    "a comment behind": b"clerk@bank.example (Ann Clerk)",
    "a comment behind the address": b"Ann Clerk <clerk@bank.example> (Loans)",
    "a comment in the name": b"Ann Clerk (Loans) <clerk@bank.example>",
    "the address as a name": b"clerk@bank.example <clerk@bank.example>",
    "the address as a name, in quotes": b'"clerk@bank.example" <clerk@bank.example>',
    "raw UTF-8": "Änne Müller <clerk@bank.example>".encode(),
    "raw UTF-8 in quotes": '"Müller, Änne" <clerk@bank.example>'.encode(),
    "raw UTF-8, a comma": "Müller, Änne <clerk@bank.example>".encode(),
    "raw Latin-1": b"\xc4nne M\xfcller <clerk@bank.example>",
    "raw Latin-1 in quotes": b'"M\xfcller, \xc4nne" <clerk@bank.example>',
    "raw Windows-1251": "Анна <clerk@bank.example>".encode("cp1251"),
    "Emoji": "Ann 🏦 <clerk@bank.example>".encode(),
    "Q": b"=?utf-8?Q?=C3=84nne_M=C3=BCller?= <clerk@bank.example>",
    "B": b"=?utf-8?B?w4RubmUgTcO8bGxlcg==?= <clerk@bank.example>",
    "Q, a comma encoded": b"=?utf-8?Q?M=C3=BCller=2C_=C3=84nne?= <clerk@bank.example>",
    "Q, a comma in the word": b"=?utf-8?Q?M=C3=BCller,_=C3=84nne?= <clerk@bank.example>",
    "Q, brackets in the word": b"=?utf-8?Q?[Jira]_=C3=84nne?= <clerk@bank.example>",
    "Q, parentheses in the word": b"=?utf-8?Q?=C3=84nne_(Loans)?= <clerk@bank.example>",
    "Q, a colon in the word": b"=?utf-8?Q?Jira:_=C3=84nne?= <clerk@bank.example>",
    "Q, blanks in the word": b"=?iso-8859-1?Q?=C4nne M=FCller?= <clerk@bank.example>",
    "Q in quotes": b'"=?utf-8?Q?M=C3=BCller,_=C3=84nne?=" <clerk@bank.example>',
    "two words": b"=?utf-8?Q?=C3=84nne?= =?utf-8?Q?_M=C3=BCller?= <clerk@bank.example>",
    "a word and plain text": b"=?utf-8?Q?=C3=84nne?= Clerk, Bank <clerk@bank.example>",
    "a word against the address": b"=?utf-8?Q?=C3=84nne?=<clerk@bank.example>",
}
"""Values of From as programs and people write them; all name the clerk alone."""

REPORT = (
    b"--b\r\nContent-Description: Notification\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\nundelivered\r\n"
    b"--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; a.example\r\n\r\nFinal-Recipient: rfc822; x@b.example\r\n"
    b"Action: failed\r\nStatus: 5.1.1\r\n\r\n--b\r\nContent-Type: text/rfc822-headers\r\n\r\nSubject: hello\r\n\r\n--b--\r\n"
)


def many_files(number: int) -> bytes:
    """A mail with so many small attachments."""
    parts = b""
    for count in range(number):
        name = b(f"Größenübersicht März {count}.xlsx")
        parts += (
            b'--x\r\nContent-Type: application/x-data;\r\n\tname="' + name + b'"\r\nContent-Description: x\r\n'
            b'Content-Disposition: attachment;\r\n\tfilename="' + name + b'"; size=500;\r\n'
            b'\tcreation-date="Thu, 26 Nov 2026 10:00:00 GMT";\r\n\tmodification-date="Thu, 26 Nov 2026 10:00:00 GMT"\r\n'
            b"Content-Transfer-Encoding: base64\r\n\r\n" + b"A" * 700 + b"\r\n"
        )
    return mail(b"Subject: files", b'Content-Type: multipart/mixed;\r\n\tboundary="x"', body=parts + b"--x--\r\n")


def long_names() -> Iterator[tuple[str, bytes]]:
    """A file with a long name in each language, as Thunderbird and as Outlook write it."""
    for text, _ in SUBJECTS:
        name = f"{text[:40]}.xlsx"
        pieces = [name[at : at + 14] for at in range(0, len(name), 14)]
        sections = b";\r\n ".join(
            b"filename*%d*=%b%b" % (number, b"UTF-8''" * (not number), quote(piece, safe="").encode())
            for number, piece in enumerate(pieces)
        )
        words = b"\r\n ".join(map(b, pieces))
        yield f"long name by Thunderbird: {text[:12]}", with_file(
            b'Content-Type: application/x-data;\r\n name="' + words + b'"',
            b"Content-Disposition: attachment;\r\n " + sections,
        )  # fmt: skip
        yield f"long name by Outlook: {text[:12]}", with_file(
            b'Content-Type: application/x-data;\r\n\tname="' + words + b'"', b'Content-Description: ' + words,
            b'Content-Disposition: attachment;\r\n\tfilename="' + words + b'"; size=1234;\r\n'
            b'\tcreation-date="Thu, 26 Nov 2026 10:00:00 GMT"',
        )  # fmt: skip


def with_file(*header: bytes) -> bytes:
    """A message with a text in two forms, a style sheet, a file with this header, and the footer of a list."""
    fields = b"".join(line + b"\r\n" for line in header)
    body = (
        b'This is a multi-part message in MIME format.\r\n--a\r\nContent-Type: multipart/related;\r\n boundary="r"\r\n\r\n'
        b'--r\r\nContent-Type: multipart/alternative; boundary="l"\r\n\r\n--l\r\n'
        b"Content-Type: text/plain; charset=UTF-8; format=flowed\r\nContent-Transfer-Encoding: 8bit\r\n\r\nhello\r\n\r\n"
        b"--l\r\nContent-Type: text/html; charset=UTF-8\r\n\r\n<p>hello</p>\r\n--l--\r\n\r\n"
        b'--r\r\nContent-Type: text/css; name="style001.css"\r\nContent-Id: <i@bank.example>\r\n\r\np {}\r\n--r--\r\n\r\n'
        b"--a\r\n" + fields + b"Content-Transfer-Encoding: base64\r\n\r\neHg=\r\n\r\n"
        b"--a\r\nContent-Type: text/plain; charset=us-ascii\r\nContent-Disposition: inline\r\n\r\n-- \r\nlist\r\n--a--\r\n\r\n"
    )
    return mail(b"Subject: files", b"MIME-Version: 1.0", b'Content-Type: multipart/mixed;\r\n boundary="a"', body=body)


FORWARDED = (
    b"Received: from a.example by b.example;\r\n\tThu, 26 Nov 2026 10:00:00 +0000\r\nFrom: =?utf-8?Q?=C3=84nne?= <a@a.example>\r\n"
    b'Subject: Minutes\r\nContent-Type: multipart/alternative;\r\n boundary="inner-1"\r\nMIME-Version: 1.0\r\n\r\n'
    b"--inner-1\r\nContent-Type: text/plain\r\n\r\nhello\r\n--inner-1\r\nContent-Type: text/html\r\n\r\n<p>\r\n--inner-1--\r\n"
)

STRUCTURES = {
    "a forwarded mail": (
        b'multipart/mixed; boundary="------------0A1B"',
        b"--------------0A1B\r\nContent-Type: text/plain; charset=UTF-8\r\n\r\nsee below\r\n--------------0A1B\r\n"
        b'Content-Type: message/rfc822; charset=UTF-8; name="Minutes.eml"\r\nContent-Disposition: attachment; filename="Minutes.eml"\r\n'
        b"Content-Transfer-Encoding: 8bit\r\n\r\n" + FORWARDED + b"\r\n--------------0A1B--\r\n",
    ),
    "a forwarded mail without a name": (
        b"multipart/mixed;boundary=Apple-Mail-1",
        b"--Apple-Mail-1\r\nContent-Type: message/rfc822\r\n\r\n" + FORWARDED + b"\r\n--Apple-Mail-1--\r\n",
    ),
    "a digest of a list": (
        b'multipart/mixed; boundary="===============1=="',
        b'--===============1==\r\nContent-Type: text/plain; charset="us-ascii"\r\nContent-Description: list Digest, Vol 1\r\n\r\nx\r\n'
        b'--===============1==\r\nContent-Type: multipart/digest; boundary="===============2=="\r\n\r\n'
        b"--===============2==\r\nContent-Type: message/rfc822\r\nMIME-Version: 1.0\r\n\r\n" + FORWARDED + b"\r\n"
        b"--===============2==\r\n\r\n" + FORWARDED + b"\r\n--===============2==--\r\n\r\n--===============1==--\r\n",
    ),
    "a receipt": (
        b"multipart/report; report-type=disposition-notification;\r\n\tboundary=r",
        (b"--r\r\nContent-Type: text/plain\r\n\r\nread\r\n--r\r\nContent-Type: message/disposition-notification\r\n\r\n"
        b"Reporting-UA: x\r\nFinal-Recipient: rfc822;a@b.example\r\nDisposition: manual-action/MDN-sent-manually; displayed\r\n\r\n--r--\r\n"),
    ),
    "a bounce with the message": (
        b'multipart/report; report-type=delivery-status; boundary="1234.5/mx.b.example"',
        REPORT.replace(b"--b", b"--1234.5/mx.b.example").removesuffix(b"--\r\n")
        + b"\r\nContent-Description: Undelivered Message\r\nContent-Type: message/rfc822\r\n\r\n" + FORWARDED
        + b"\r\n--1234.5/mx.b.example--\r\n",
    ),
    "a mail of PHPMailer": (
        b'multipart/alternative;\r\n boundary="b1_abcdef"',
        (b"This is a multi-part message in MIME format.\r\n--b1_abcdef\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\nx\r\n\r\n"
        b"--b1_abcdef\r\nContent-Type: text/html; charset=us-ascii\r\n\r\n<p>\r\n\r\n\r\n--b1_abcdef--\r\n"),
    ),
    "a mail of Lotus Notes": (
        b'multipart/related; boundary="=_related 0050C3D2"',
        (b'This is a multipart message in MIME format.\r\n--=_related 0050C3D2\r\nContent-Type: multipart/alternative; boundary="=_alternative 0050C3D3"\r\n\r\n'
        b'\r\n--=_alternative 0050C3D3\r\nContent-Type: text/plain; charset="US-ASCII"\r\n\r\nx\r\n--=_alternative 0050C3D3--\r\n--=_related 0050C3D2--\r\n'),
    ),
    "a mail whose last delimiter is missing": (b"multipart/mixed; boundary=q", b"--q\r\nContent-Type: text/plain\r\n\r\nx\r\n"),
    "a mail sealed by S/MIME": (
        b"application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m\r\nContent-Transfer-Encoding: base64",
        b"MIAGCSqGSIb3DQEHA6CAMIACAQAxggE=\r\n",
    ),
}  # fmt: skip
"""Content-Type and body of mails as programs write them."""


def messages() -> Iterator[tuple[str, bytes]]:
    """All of them by name."""
    for name, (kind, body) in STRUCTURES.items():
        yield name, mail(b"Subject: x", b"MIME-Version: 1.0", b"Content-Type: " + kind, body=body)
    for name, author in AUTHORS.items():
        yield f"From: {name}", mail(b"From: " + author, b"To: ben@bob.example", b"Subject: plan")
    yield from long_names()
    for text, charset in SUBJECTS:
        octets = text.encode(
            {"ks_c_5601-1987": "cp949", "euc-kr": "cp949", "windows-1252": "cp1252"}.get(charset, charset)
        )
        words = b"\r\n ".join(
            b(text[at : at + 12].encode(charset if charset != "ks_c_5601-1987" else "cp949"), charset)
            for at in range(0, len(text), 12)
        )
        yield (
            f"words of {charset}: {text[:12]}",
            mail(b"Subject: " + words, b"Content-Type: text/plain; charset=" + charset.encode()),
        )
        if charset not in {"iso-2022-jp", "utf-16"}:
            yield (
                f"raw {charset}: {text[:12]}",
                mail(b"Subject: " + octets, b"Content-Type: text/plain; charset=" + charset.encode()),
            )
        message = EmailMessage(SMTP)
        message["Subject"] = text
        message["From"], message["To"] = "Ann Ä <ann@alice.example>", "ben@bob.example"
        message.set_content(text + "\n", charset="utf-8")
        message.add_alternative(f"<p>{text}</p>", subtype="html")
        message.add_attachment(b"x" * 50, maintype="application", subtype="x-data", filename=f"{text[:20]}.xlsx")
        yield f"by a program: {text[:12]} {charset}", message.as_bytes()
    for name, subject in PLAIN_SUBJECTS.items():
        yield (
            f"subject {name}",
            mail(b"From: Ann <ann@alice.example>", b"Subject: " + subject, b"X-Class: none", b"X-Mailer: x"),
        )
    for name in NAMES:
        message = EmailMessage(SMTP)
        message["Subject"] = "files"
        message.set_content("see files\n")
        message.add_attachment(b"\0\1" * 99, maintype="application", subtype="octet-stream", filename=name)
        message.add_attachment(b"\0\1" * 99, maintype="application", subtype="x-data", filename=name)
        yield f"file {name[:40]}", message.as_bytes()
        octets = name.encode()
        quoted = name.replace("\\", "").replace('"', "'").encode()
        yield f"file {name[:40]}, encoded words in quotes", mail(
            b"Content-Type: application/x-data;\r\n\tname=\"" + b(octets) + b'"', b"Content-Transfer-Encoding: base64",
            b"Content-Disposition: attachment;\r\n\tfilename=\"" + b(octets) + b'"', body=b"eHg=\r\n")  # fmt: skip
        yield (
            f"file {name[:40]}, raw",
            mail(
                b'Content-Type: application/x-data; name="' + quoted + b'"',
                b'Content-Disposition: attachment; filename="' + quoted + b'"; size=5',
            ),
        )
    for number in (10, 60):
        yield f"{number} files, as Outlook names them", many_files(number)
    for boundary in BOUNDARIES:
        line = b"--" + boundary.strip(b'"')
        body = (b"This is a multi-part message in MIME format.\r\n\r\n" + line + b'\r\nContent-Type: text/plain; charset="utf-8"; format=flowed; delsp=yes\r\n'
                b"Content-Transfer-Encoding: quoted-printable\r\n\r\nhello\r\n\r\n-- \r\nAnn\r\n--\r\nlist\r\n" + line
                + b"\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>hello</p>\r\n" + line + b"--\r\n\r\n_____\r\nlist mailing list\r\n")  # fmt: skip
        yield (
            f"boundary {boundary.decode()}",
            mail(b"MIME-Version: 1.0", b"Content-Type: multipart/alternative;\r\n\tboundary=" + boundary, body=body),
        )
    yield (
        "a report of delivery",
        mail(
            b"Subject: Undelivered",
            b'Content-Type: multipart/report; report-type=delivery-status; boundary="b"',
            body=REPORT,
        ),
    )
    yield "a signed mail", mail(
        b"Subject: signed", b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; micalg=sha-256; boundary="s"',
        body=b"--s\r\nContent-Type: text/plain\r\n\r\nhello\r\n--s\r\nContent-Type: application/pkcs7-signature; name=smime.p7s\r\n"
        b"Content-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename=smime.p7s\r\n\r\nMII=\r\n--s--\r\n")  # fmt: skip
    yield "an encrypted mail", mail(
        b"Subject: ...", b'Content-Type: multipart/encrypted; protocol="application/pgp-encrypted"; boundary="e"',
        body=b"--e\r\nContent-Type: application/pgp-encrypted\r\n\r\nVersion: 1\r\n--e\r\nContent-Type: application/octet-stream; name=encrypted.asc\r\n\r\nx\r\n--e--\r\n")  # fmt: skip
    yield "an invitation", mail(
        b"Subject: Invitation", b'Content-Type: multipart/alternative; boundary="i"',
        body=b'--i\r\nContent-Type: text/plain; charset="UTF-8"\r\n\r\nx\r\n--i\r\nContent-Type: text/calendar; charset="UTF-8"; method=REQUEST\r\n\r\nBEGIN:VCALENDAR\r\n--i--\r\n')  # fmt: skip
    yield "a mail of Outlook", mail(
        b"Thread-Topic: plan", b"Subject: RE: plan", b"Content-Language: de-DE", b'Content-Type: multipart/mixed;\r\n\tboundary="_002_X_"',
        body=b'--_002_X_\r\nContent-Type: text/plain; charset="iso-8859-1"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nGr=FC=DFe\r\n'
        b'--_002_X_\r\nContent-Type: application/ms-tnef; name="winmail.dat"\r\nContent-Transfer-Encoding: binary\r\n\r\nx\r\n--_002_X_--\r\n')  # fmt: skip
    yield "a newsletter", mail(
        b"List-Unsubscribe: <https://a.example/u>,\r\n <mailto:u@a.example>", b"Subject: =?utf-8?B?" + b"8J+Ugw==" + b"?= News", b"X-Report: a;b=c;d=\"e\"",
        b"Content-Type: text/html; charset=UTF-8", b"Content-Transfer-Encoding: quoted-printable", body=b"<p>=C3=A4</p>\r\n")  # fmt: skip
    yield "a plain text", b"Subject: x\r\n\r\n[secret] plan.docx application/pdf image/png begin 644 plan.docx\r\n"
