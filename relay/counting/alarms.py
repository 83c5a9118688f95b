"""The one list of conditions in which mail leaves weaker than it could, stays, is put aside, or is not watched.
Standard: names stay; page, `check`, /readyz, metrics, log and mails print this list. Rules: relay/status/rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["critical", "warning"]
"""`critical`: someone has to act now. `warning`: it can wait until the morning."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One condition; `about` is what it is raised for each of, "" where there is only one.

    `headline` says it in a few words, where {about} stands for what it is raised for. Where `reasons` has words for the
    last part of that, they stand as {reason}. /readyz says what is `not_ready`.

    It begins when its condition has held for `after_s` seconds, and ends when it has not held for `clear_s`. So it does
    not flap. With `digest_s`, a cause that has changed is reported again after that time.
    """

    name: str
    headline: str
    meaning: str
    begins: str
    ends: str
    what_to_do: str
    about: str = ""
    after_s: float = 0.0
    clear_s: float = 60.0
    digest_s: float = 0.0
    severity: Severity = "critical"
    not_ready: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)

    def line(self, about: str) -> str:
        """The headline for what it is about."""
        if not self.reasons:
            return self.headline.format(about=about)
        name, _, reason = about.rpartition(" ")
        return self.headline.format(about=name, reason=f": {self.reasons.get(reason, reason)}")


PUT_ASIDE: Final = {
    "expired": "no KME has its key",
    "destroyed": "its key was used before, and is destroyed",
    "key-lost": "its key was lost on its way from the KME",
    "wrong-site": "sealed by or for a site that is not known here",
    "tampered": "changed on the way, or not sealed by that peer",
    "unknown-format": "not sealed in a form that is known here",
    "unknown-signer": "signed under a certificate that is not known here",
    "not-accepted": "sealed in a way that was not agreed",
    "key-used": "its key has opened another message",
    "redirected": "sealed for somebody else, or sent by somebody else",
    "outside-window": "sealed too long ago, or by a wrong clock",
    "replayed": "it has the id of another message that came before",
    "unprotected": "less protection than policy requires",
}
"""Each reason of the quarantine (relay/quarantine) in a headline, which accuses nobody: no name there is verified."""


_RENEW: Final = (
    "Renew a site's with `qumail-relay identity new --renew` and an invitation to each peer. Ask peers for theirs and "
    "the operator for a KME's; renew one for TLS as it was made. The relay takes renewed files up by itself or with "
    "SIGHUP. `qumail-relay check` names those of S/MIME (deploy/SMIME.md)."
)

_DELETED: Final = (
    "Mail deleted there (`postsuper -d`) is forgotten two hours after its last attempt, or after twice the longest "
    "interval between its attempts"
)
_WHERE_TO_LOOK: Final = (
    "The cause stands in brackets. policy: `qumail-relay policy explain SENDER RECIPIENT`, with the addresses from "
    "`postqueue -p`. keys: `qumail-relay keys status`; for incoming mail (`KeyNotFound`) our KME does not have the "
    "peer's key: ask the operator of the KMEs. next hop, store: `qumail-relay check`. The log has the cause of each "
    "mail: `not_sealed`, `recipient_not_accepted` and `copy_not_delivered` for outgoing mail, `mail_not_accepted` and "
    "`opened_and_not_sent` for incoming. Then `postqueue -f` has all mail tried again."
)

_RESTART: Final = (
    "`systemctl restart postfix` (without systemd `postfix stop`, `postfix start`). After a reload connected clients "
    "go on by the former settings."
)

_ALL: Final = (
    Alarm(
        "shadow_mode",
        "No outgoing mail is sealed",
        "Shadow mode is on: all outgoing mail leaves unsealed. Said daily.",
        "policies.shadow = true: all outgoing mail leaves unsealed. Daily",
        "",
        "`qumail-relay policy simulate --shadow` shows the outcome of each mail under the policies. Then set "
        "policies.shadow = false in relay.toml, and restart the relay.",
        clear_s=0.0,
    ),
    Alarm(
        "postfix_bypasses",
        "Mail may go past the relay or be lost by Postfix's configuration: {about}",
        "By the configuration of the Postfix beside the relay, users' mail may leave past the relay, in clear. Or "
        "sealed mail may arrive unopened, or mail may be lost.",
        "by Postfix's configuration mail may go past the relay in clear, arrive unopened, or be lost",
        "corrected, and Postfix restarted",
        f"`qumail-relay check` names each line and its remedy. Then restart Postfix: {_RESTART} Find the cause of the "
        "change: configuration management, or a restored file. Until the repair, `postfix stop` keeps all mail back. "
        "Without a Postfix beside the relay, take [postfix] out of relay.toml.",
        about="finding",
        clear_s=0.0,
        digest_s=60.0,
    ),
    Alarm(
        "postfix_holds",
        "Mail may wait or be refused by Postfix's configuration: {about}",
        "By its configuration the Postfix beside the relay keeps mail waiting or refuses it. The relay does not see "
        "this mail.",
        "by Postfix's configuration mail waits or is refused, unseen by the relay",
        "corrected, and Postfix restarted",
        f"`qumail-relay check` names each line and its remedy. Then restart Postfix: {_RESTART} Mail put on hold by "
        "Postfix is released by `postsuper -H ALL`, and `postqueue -f` has all other mail tried again.",
        about="finding",
        clear_s=0.0,
        digest_s=60.0,
    ),
    Alarm(
        "postfix_unwatched",
        "Whether mail goes past the relay is not watched",
        "The configuration of the Postfix beside the relay, or one of its tables, cannot be read, or postconf fails, "
        "or the relay has no rule for a setting: mail may go past the relay, wait or be lost unnoticed.",
        "for fifteen seconds a file or table of Postfix was unreadable, or postconf failed, or a setting has no rule",
        "",
        "The cause names the file that denies access, or the setting, and the remedy. `qumail-relay check`, as root, "
        "looks at Postfix itself.",
        after_s=15.0,
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "mail_held",
        "Mail ({about}) waits too long",
        "Mail waits in the queue of the mail server, because the relay held it at every attempt.",
        "a recipient's mail was first held longer ago than `held_longer_than`, and a retry since has failed",
        f"the mail has gone, or was refused. {_DELETED}",
        _WHERE_TO_LOOK,
        about="direction",
    ),
    Alarm(
        "mail_stuck",
        "All new {about} mail is held",
        "All mail of this direction since the last delivery is held. Mail among our own users does not count.",
        "three or more new mails were held since the last delivery, and for half a minute none goes",
        "a mail goes, or none was held for ten minutes",
        _WHERE_TO_LOOK,
        about="direction",
        after_s=30.0,
    ),
    Alarm(
        "keys_gone",
        "Mail for {about} finds no quantum key",
        "Mail to a peer finds no quantum key, whatever the rates say. The mail is held, or sealed at another level of "
        "its policy.",
        "mail to the peer asked for a quantum key, and none came",
        "keys are there, and none was missed for two minutes",
        "`qumail-relay keys status` shows who uses the keys. Ask the KMEs' operator for the cause, and have less mail "
        "use keys: level aes in place of otp, or pqc beside pqc+aes (policies/README.md).",
        about="peer",
        clear_s=120.0,
    ),
    Alarm(
        "keys_run_low",
        "Quantum keys run low: {about}",
        "At the present rates the keys of a KME for a peer will be gone soon.",
        "the time until the keys are gone has been below `alarm` of the KME for a minute",
        "above for a minute",
        "`qumail-relay keys status` shows who uses the keys, while there is time. Ask for a higher rate, or have less "
        "mail use keys: level aes in place of otp (policies/README.md).",
        about="KME and peer",
        after_s=60.0,
        severity="warning",
    ),
    Alarm(
        "peer_without_keys",
        "No quantum keys are used with {about}",
        "No group of our KMEs is shared with a peer: mail to this peer is sealed without quantum keys.",
        "the relay serves with a peer who shares no group of our KMEs",
        "kme_groups of the peer names a group, or is empty",
        "Write kme_groups in [peers.*], or kme_groups = [] if no group is intended.",
        about="peer",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "kme_away",
        "KME {about} does not answer",
        "A KME does not answer, or not as it should: there are no keys, and arriving mail under its keys is held.",
        "for half a minute no call has succeeded and one has failed, or the relay has stopped calling it (breaker)",
        "answers for half a minute",
        "`qumail-relay check` asks the KME and names the fault: address, certificates, answers. Others of its group "
        "are used meanwhile; without another, mail is held.",
        about="KME",
        clear_s=30.0,
        severity="warning",
    ),
    Alarm(
        "keys_unwatched",
        "The number of keys is unknown: {about}",
        "A KME has not reported its number of keys for a minute: the relay cannot see a shortage coming.",
        "the KME's last status is older than a minute",
        "",
        "`qumail-relay keys status` names the fault. If the KME is away, see `kme_away`.",
        about="KME and peer",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "received_keys_refused",
        "KME {about} gives no keys for arriving mail",
        "A KME, or a proxy in front of it, answers calls for keys of arriving mail without a word about a key, in "
        "whatever form, or not at all. Mail under quantum keys of its group is held.",
        "a call for keys of arriving mail got no word about a key, or two in a row no answer; within a minute"
        " none got keys",
        "keys come, or a word about a missing key",
        "`qumail-relay check` and the log's `received_keys_refused` have the answer. The fault is in the KME, a "
        "proxy, or their settings (paths, methods, certificates): ask their operator. A KME that answers so for "
        "missing keys needs a rule in `errors` of its table.",
        about="KME",
        clear_s=0.0,
    ),
    Alarm(
        "certificate_ends",
        "A certificate ends soon: {about}",
        "A certificate ends within 30 days, and its use with it. Said daily.",
        "30 days are left. Daily",
        "replaced, or ended",
        _RENEW,
        about="certificate",
        severity="warning",
    ),
    Alarm(
        "certificate_ended",
        "A certificate has ended: {about}",
        "A certificate has ended: mail that depends on this certificate is held. Said daily.",
        "its time is over: mail that depends on this certificate is held. Daily",
        "replaced",
        _RENEW,
        about="certificate",
    ),
    Alarm(
        "certificates_refused",
        "KME {about} does not take its renewed certificates",
        "The files of a KME's CA, or of our certificate and key for it, were renewed, and the KME does not accept "
        "them. The former files are used until they end or the relay restarts.",
        "the KME answers with the former certificate files only, or the new files do not belong together",
        "the new files work, or others are in their place",
        "The log's `kme_certificates_refused` or `kme_certificates_not_renewed` says why. Is the CA the issuer of the "
        "KME's own certificate? Is our certificate from a CA known to the KME, and does our key belong to our "
        "certificate? Put the right or the former files there; the relay takes them up by itself.",
        about="KME",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "store_unwritable",
        "All mail is held: the store cannot be written",
        "The store cannot be written, or not in time: all mail is held, and no KME is asked for keys.",
        "a row could not be written within ten seconds; or the file was moved, deleted or emptied, or is damaged",
        "",
        "`qumail-relay check` says the cause: a full disk, a program that locks the database, a PostgreSQL that is "
        "away, rights, a moved file. Held mail comes again by itself.",
        clear_s=15.0,
        not_ready=True,
    ),
    Alarm(
        "store_is_another",
        "The store is not the one that was",
        "The store is not the one from which this relay served, or was sealed under another site secret: empty, "
        "older, another one, or unknown. Its forgotten contents are lost: received keys, quarantine, who has had "
        "which mail. Mail sealed from now on is handled as usual; mail sealed before is put in quarantine.",
        "the store's id or mark differs from the file `restore.check`, or its site secret is missing",
        "an administrator accepts the store",
        "After a restore or a move, accept the store: `qumail-relay store accept`. Otherwise stop the relay and find "
        "the store or the secret; put it back, or restore a backup (deploy/OPERATING.md).",
        clear_s=0.0,
    ),
    Alarm(
        "file_unusable",
        "A file cannot be used: the next start may fail",
        "A file needed for a start, or for the renewal of certificates, is missing, damaged, or not readable. Or "
        "something else is in the place of a file or directory that the relay writes. The relay goes on with the "
        "former contents. After a restart all mail may be held.",
        "relay.toml, a peer's document, the identity, a certificate, key or list named in relay.toml, or a file of the "
        "installed program was unusable at two looks",
        "all are usable, or a relay has started with them",
        "The cause names each file and its fault. Do not restart the relay before the repair. Put the file back "
        "from a backup (deploy/OPERATING.md), or undo the edit; `qumail-relay check` then says whether all is well.",
        after_s=15.0,
        clear_s=0.0,
    ),
    Alarm(
        "groups_old",
        "The groups from the directory are old",
        "No `qumail-relay groups fetch` has succeeded of late. Who has joined a group since then is not treated as one "
        "of it.",
        "no `qumail-relay groups fetch` has succeeded for `ldap.old_after`",
        "a fetch succeeds",
        "Run `qumail-relay groups fetch`: it says what is wrong. Then look at its timer: "
        "`systemctl status qumail-relay-groups.timer`.",
        severity="warning",
        clear_s=0.0,
    ),
    Alarm(
        "disk_full",
        "The disk is nearly full",
        "The disk of the state directory is nearly full. On a full disk mail is held.",
        "less than `disk_free` is free on the disk of the state directory",
        "a tenth more is free",
        "Make room there: `df`, `du -x`. The relay itself needs little; its quarantine has a limit in relay.toml.",
        clear_s=15.0,
    ),
    Alarm(
        "audit_unwritable",
        "Mail is held: the audit record cannot be written",
        "The audit record cannot be written: mail that needs a line of the ledger is held.",
        "no line of the audit record can be written",
        "",
        "`qumail-relay check` says the cause, mostly rights or a full disk.",
        clear_s=15.0,
    ),
    Alarm(
        "key_receiver_ended",
        "Arriving mail is held: a process of the relay has ended",
        "The second process, which fetches keys of arriving mail, has ended.",
        "the process that fetches keys of arriving mail has ended",
        "the relay was started anew",
        "A service manager starts the relay anew by itself; else `qumail-relay serve`. The log says why it ended.",
        clear_s=0.0,
        not_ready=True,
    ),
    Alarm(
        "key_receiver_silent",
        "Arriving mail is held: a process of the relay does not answer",
        "The second process, which fetches keys of arriving mail, is stopped or hangs. Mail under quantum keys is "
        "held, and no KME is asked for them.",
        "this process has not answered for ten seconds",
        "",
        "`ps -C 'relay keys' -o pid,stat` shows the process. With T in its state it is stopped: `kill -CONT PID` loses "
        "nothing. With D a disk hangs (`dmesg`). Otherwise start the relay anew; keys on their way may be lost then.",
        clear_s=0.0,
        not_ready=True,
    ),
    Alarm(
        "not_watched",
        "The relay is not watched",
        "The relay has not checked itself for a minute: all other conditions may be out of date.",
        "the relay has not checked itself for a minute: every other alarm may be out of date",
        "",
        "Does a disk hang (`dmesg`)? Is the host overloaded (`uptime`)? If not, start the relay anew and report it.",
        clear_s=0.0,
        not_ready=True,
    ),
    Alarm(
        "sealed_mail_unopened",
        "Sealed mail for this site waits, and cannot be opened here",
        "Sealed mail for this site came to the listener of outgoing mail, and this relay cannot open it: there is no "
        "[incoming], or the mail is for others as well. The mail is held, and its sender's server gives up in some "
        "days.",
        "sealed mail for this site came to the outgoing listener within ten minutes, and cannot be opened here",
        "none came for ten minutes, and no outgoing mail waits for a cause of no other alarm",
        "Have the mail server hand arriving mail to the relay of this site that opens. Without one, set [incoming] "
        "(`qumail-relay setup --replace --integration content-filter`). A site that only sends gives its peers a new "
        "invitation (`qumail-relay identity invite`); they refuse mail for this site from then on.",
        clear_s=0.0,
    ),
    Alarm(
        "mailbox_unwatched",
        "Mailbox {about} is not watched",
        "A mailbox of [imap.*], or a folder of it, cannot be watched: sealed mail stays unopened, and its keys are "
        "destroyed in time.",
        "for half a minute the server could not be reached, refused the login, or a folder could not be opened",
        "all folders were looked through",
        "`qumail-relay check` logs in and names the fault; `imap_unavailable` and `imap_login_refused` in the log "
        "have the server's words. The relay tries a server that is away again by itself. A new password or token "
        "counts within a minute, a change of [imap.*] from a restart.",
        about="account",
        after_s=30.0,
        clear_s=0.0,
    ),
    Alarm(
        "mail_put_aside",
        "Mail in the name of {about} was put aside{reason}",
        "Mail in a peer's name, by what its sealed layers or its sender say, could not be opened, and is in "
        "quarantine. The sender believes the mail delivered, the recipients do not know of it, and its keys are "
        "destroyed in time. The first of each peer and reason is reported at once, changes in a digest an hour. Said "
        "daily.",
        "mail of this peer and reason is in quarantine. At once, then in an hourly digest, and daily",
        "",
        "`qumail-relay quarantine list` shows the mail, deploy/RUNBOOK.md (Reasons of the quarantine) the remedy for "
        "each reason. Release genuine mail once the cause is fixed, and drop the rest.",
        about="peer and reason",
        clear_s=0.0,
        digest_s=3600.0,
        severity="warning",
        reasons=PUT_ASIDE,
    ),
    Alarm(
        "unsealed_from_peer",
        "Mail in the name of {about} came unsealed{reason}",
        "Mail in the name of a peer came unsealed, though mail of its relay is sealed. The mail was forged, or left "
        "the peer's mail server past its relay, or went over a mailing list. Or the mail was sealed, and a mail server "
        "on its way changed it beyond recognition. The peer's relay is sent a note, once an hour at "
        "most; whether its mail server takes the note is not known here.",
        "unsealed mail came in the name of a peer whose relay seals; apart for its domain in From alone",
        "none came for an hour",
        "The log's `came_unsealed_in_a_peers_name` has each mail. A mail with a file smime.p7m was sealed: compare "
        "the peer's identity for this site (`qumail-relay identity show` at both), and see the findings of `check` "
        "for Postfix. Else call the peer's administrators: their mail server may have lost its filter. With `require "
        '= "sealed"` in the policy file of the peer (policies/README.md) this mail is marked, put in quarantine or '
        "refused.",
        about="peer and reason",
        clear_s=3600.0,
        digest_s=3600.0,
        severity="warning",
        reasons={"sender": "it has its domain in MAIL FROM", "author": "it has its domain in From alone"},
    ),
    Alarm(
        "unsealed_at_peer",
        "Mail of ours comes unsealed to {about}",
        "The relay of a peer reports unsealed mail with our domain in MAIL FROM. Our mail server no longer hands its "
        "mail to the relay, and mail leaves in clear, or somebody forges our name.",
        "the peer's relay reports unsealed mail with our domain in MAIL FROM",
        "no report for two hours; one comes an hour at most",
        "`qumail-relay check --postfix` says whether Postfix hands its mail to the relay. Send a mail to the peer: "
        "does the log have `sealed_and_sent`? If so, ask the peer's administrators for the origin of the unsealed "
        "mail. SPF lets their mail server refuse forged mail.",
        about="peer",
        clear_s=7200.0,
        digest_s=3600.0,
    ),
    Alarm(
        "quarantine_grows",
        "Much sealed mail cannot be opened",
        "Much sealed mail cannot be opened. Somebody forges mail, or a peer has other keys or certificates.",
        "more than `unopened` mails were put in quarantine within ten minutes",
        "fewer for ten minutes",
        "`qumail-relay quarantine list` has reason and peer. From one real peer: talk to its administrators, for the "
        "keys or certificates known here are not theirs. Forged mail hurts nobody, and can be dropped: `qumail-relay "
        "quarantine drop`.",
        severity="warning",
    ),
    Alarm(
        "quarantine_full",
        "The quarantine is nearly full",
        "The quarantine has hardly any room left: unopened mail will be held.",
        "more than four fifths of quarantine.max_size are taken, or a mail found no room",
        "",
        "Release or drop its messages: `qumail-relay quarantine list`.",
    ),
    Alarm(
        "clear_text",
        "Mail leaves in clear",
        "Mail leaves in clear to elsewhere. Raised only with `clear_text` set, at a site that means to send none.",
        "mail left in clear to elsewhere; only with `clear_text` set",
        "none did for ten minutes",
        "`qumail-relay audit export --below rsa` lists the mails, and `qumail-relay policy explain` gives the reason.",
        severity="warning",
    ),
    Alarm(
        "tripwire",
        "Mail was about to leave otherwise than policy wants",
        "Mail was about to leave not sealed as policy wants, and was held: a fault of the relay.",
        "a mail about to leave otherwise than policy wants was held: a fault of the relay",
        "none was for ten minutes",
        "The mail is safe in the queue. Keep the log's line `tripwire` and the mail, and report it.",
    ),
    Alarm(
        "policy_broken",
        "The policy files are broken",
        "The policy files are broken; the former ones are in force, also in newly started processes.",
        "broken policy files were read; the former ones are in force",
        "",
        "`qumail-relay policy check` names file and line.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "policy_holds",
        "Policy holds {about} mail",
        "Policy holds mail for another reason than keys: no policy covers the recipient, or no level listed is "
        "possible. The mail waits until policy is changed, or its sender's server gives up.",
        "held mail was tried again, and policy holds it for another reason than keys",
        "the last of it has gone, or was refused. Deleted mail: as for `mail_held`",
        "`qumail-relay policy explain SENDER RECIPIENT` says which file and line hold it; `postqueue -p` shows both "
        "addresses. Change the policy and have the mail tried again (`postqueue -f`), or have the mail refused at "
        'once: otherwise = "refuse" (policies/README.md). To end it within a minute after `postsuper -d`: '
        "stop the relay, delete `held.json` beside the store or secret, start it.",
        about="direction",
        severity="warning",
    ),
    Alarm(
        "policy_edit_waits",
        "An edit of the policies does not come into force",
        "An edit of the policy files waits, since somebody has one of them open for writing or they go on changing. "
        "The former files are in force.",
        "an edit of policy files has waited for a minute: a file is open for writing, or files go on changing",
        "in force, or undone",
        "The cause names the file and, if the system shows it, the program that has the file open: save and close the "
        "file. `qumail-relay policy install` puts a whole set into force at once.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "policy_test_fails",
        "A test of the policies in force fails",
        "A test in tests.toml fails since a day has passed: a file or rule has begun or ended, and decisions differ "
        "from those expected.",
        "a test of the policies in force fails since a day has passed",
        "",
        "`qumail-relay policy test` names each. Renew or remove ended files and rules, or give the test the same "
        "`until`.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "policy_in_vain",
        "Policy asks for what cannot be done",
        "Policy files ask for something impossible here: their mail is held or leaves weaker.",
        "a file names a KEM missing here, a rule or floor fits no mail, or all mail to a peer is held",
        "",
        "`qumail-relay check` names file and line of each.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "next_hop_away",
        "No {about} mail is delivered: the next hop does not answer",
        "The next hop cannot be reached: mail is held.",
        "no connection succeeded for a mail, nor in a test right afterwards (as far as EHLO). Without mail "
        "for half a minute: in no test for 15 s",
        "mail is delivered, or a test succeeds",
        "`qumail-relay check` tries the next hop. At your own mail server: is the server up, does it listen there, "
        "and what does its log say of the relay's connections?",
        about="direction",
        clear_s=5.0,
    ),
    Alarm(
        "next_hop_refuses",
        "No {about} mail is delivered: the next hop does not take it",
        "The next hop takes no mail. It defers mail (4xx), and the relay holds it; or refuses mail (5xx), and senders "
        "hear of this.",
        "three or more mails were deferred or refused within ten minutes, and none was delivered",
        "a mail is delivered; or for ten minutes none was deferred or refused, and none waits",
        "The log's `copy_not_delivered` has its answer. Mostly the next hop does not know the relay or the "
        "recipients: look at its relay_domains, mynetworks, or a filter behind it.",
        about="direction",
        clear_s=5.0,
    ),
    Alarm(
        "canary_late",
        "Mail to or from {about} may not get through",
        "No canary has come back from a peer's relay: mail to or from the peer does not get through, or only late.",
        "no canary has come back for `every` and `late_after` of [canary] together",
        "",
        "The log's `canary_not_sent` says why one did not leave, and `canary_dropped` why a receipt did not count. "
        "`qumail-relay trace` shows how far one came, by the `mail` of its line `canary_sent`. If all is well "
        "here, ask the peer's administrators: do they take mail for qumail-canary, and does their relay answer?",
        about="peer",
        clear_s=0.0,
    ),
    Alarm(
        "event_loop_late",
        "The relay is slow",
        "A process of the relay runs late: all mail is slow.",
        "three times in a minute a process was more than a quarter of a second late",
        "none was for a minute",
        "Is the host overloaded (`uptime`, `vmstat 1`), or does it swap? If not, report it, with the log and the mail "
        "of this time.",
        severity="warning",
    ),
    Alarm(
        "memory_full",
        "New mail waits: memory is full",
        "The messages in flight take all memory allowed to them: new mail waits, then hears 452.",
        "nine tenths of limits.messages_in_flight are taken for ten seconds, or mail was turned away for want of room",
        "room for a minute",
        "Something behind the relay is slow, or much large mail comes at once. If the alarm stays: a larger "
        "limits.messages_in_flight, if the host has the memory.",
        after_s=10.0,
    ),
    Alarm(
        "connections_full",
        "All connections are taken",
        "Clients hold all the connections that a listener may have. Others are refused with 421, and their mail waits "
        "in the queue of the server that sends it.",
        "for ten seconds connections were refused, since all were taken",
        "none was refused for a minute",
        "`ss --tcp --processes` as root says who holds connections to the relay's ports. Any user of this host can "
        "open some: end that program. If it is Postfix itself: a larger `connections` of the listener.",
        after_s=10.0,
    ),
    Alarm(
        "clock_jumped",
        "The clock is wrong",
        "The clock of this host was set by more than a minute while the relay ran.",
        "the clock of this host is more than a minute off the time passed",
        "set back, or has run on for an hour",
        "`timedatectl` and `chronyc tracking`: which time is right? Set the clock right, and find out who set it.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "clock_differs",
        "The clock of this host is not that of KME {about}",
        "A KME's replies show another time than the clock of this host, and one of the two is wrong. The peer's relay "
        "puts aside mail sealed by a wrong clock, and this relay puts aside the peers' mail.",
        "the Date of the KME's last reply is more than five minutes off the clock of this host",
        "",
        "`timedatectl` and `chronyc tracking`: which time is right? Set the clock right here, or ask the KME's "
        "operator. Then look at mail put aside meanwhile: `qumail-relay quarantine list --reason outside-window`.",
        about="KME",
        clear_s=0.0,
    ),
    Alarm(
        "history_not_written",
        "The history is not written",
        "The page's history of hours and days is not written.",
        "the store did not take the page's history",
        "",
        "`qumail-relay check` looks at the store.",
        clear_s=0.0,
        severity="warning",
    ),
)
ALARMS: Final = {each.name: each for each in _ALL}
"""All alarms by name, in the order of this file."""
