"""Ordinary mail in many languages and character sets, as programs write it, in which there is nothing that a rule names.
Standard: what mail programs send every day, some of their faults included.
"""

from __future__ import annotations

from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP

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


def messages() -> Iterator[tuple[str, bytes]]:
    """All of them by name."""
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
