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
    "the operator for a KME's; renew one for TLS as it was made. Files that are renewed are taken up by themselves or "
    "with SIGHUP."
)

_DELETED: Final = (
    "The relay has no queue, so it does not see a mail deleted there (`postsuper -d`). It forgets one two hours after "
    "its last attempt, or after twice the longest interval between its attempts, also over a restart"
)
_WHERE_TO_LOOK: Final = (
    "The cause stands in brackets. policy: `qumail-relay policy explain SENDER RECIPIENT`, with the two that "
    "`postqueue -p` shows. keys: `qumail-relay keys status`; for incoming mail (`KeyNotFound`) our KME does not have "
    "the key that the peer sealed with, and the operator of the KMEs has to say why. next hop, store: "
    "`qumail-relay check`. The log has the cause of each mail: `not_sealed`, `recipient_not_accepted` and "
    "`copy_not_delivered` for outgoing mail, `mail_not_accepted` and `opened_and_not_sent` for incoming."
)

_RESTART: Final = (
    "`systemctl restart postfix`, without systemd `postfix stop` and `postfix start`. A reload is not enough: clients "
    "that are connected go on by the former settings."
)

_ALL: Final = (
    Alarm(
        "shadow_mode",
        "No outgoing mail is sealed",
        "Shadow mode is on: all outgoing mail leaves unsealed. Said daily.",
        "the relay serves with policies.shadow = true",
        "it serves without",
        "`qumail-relay policy simulate --shadow` says what would have become of the mail. Then set policies.shadow = "
        "false in relay.toml, and restart the relay.",
        clear_s=0.0,
    ),
    Alarm(
        "postfix_bypasses",
        "Mail may go past the relay or be lost by Postfix's configuration: {about}",
        "By the configuration of the Postfix beside the relay, mail that users send may leave past the relay, in "
        "clear. Or mail that arrives sealed may not be opened, or mail may be lost.",
        "main.cf, master.cf or a table says so, read at the start and within seconds of a change",
        "they were read again, do not say so, and Postfix was started after they were changed",
        f"`qumail-relay check` names each line and what to type. Then restart Postfix: {_RESTART} Find out "
        "who or what changed it: configuration management, or a restored file. Until it is right, `postfix stop` "
        "keeps all mail back. Where no Postfix is meant to be beside the relay, take [postfix] out of relay.toml.",
        about="finding",
        clear_s=0.0,
        digest_s=60.0,
    ),
    Alarm(
        "postfix_holds",
        "Mail may wait or be refused by Postfix's configuration: {about}",
        "By its configuration the Postfix beside the relay keeps mail waiting or refuses it. The relay does not see "
        "this mail.",
        "main.cf, master.cf or a table says so, read at the start and within seconds of a change",
        "they were read again, do not say so, and Postfix was started after they were changed",
        f"`qumail-relay check` names each line and what to type. Then restart Postfix: {_RESTART} Mail that Postfix "
        "has put on hold is released by `postsuper -H ALL`, and `postqueue -f` has all other mail tried again.",
        about="finding",
        clear_s=0.0,
        digest_s=60.0,
    ),
    Alarm(
        "postfix_unwatched",
        "Whether mail goes past the relay is not watched",
        "The configuration of the Postfix beside the relay, or a table that it names, cannot be read, or postconf "
        "fails: whether mail goes past the relay is not known.",
        "it could not be read for fifteen seconds",
        "all of it was read",
        "The cause says what denies access and what to type. `qumail-relay check`, as root, looks at Postfix itself.",
        after_s=15.0,
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "mail_held",
        "Mail ({about}) waits too long",
        "Mail waits in the queue of the mail server, since it was held here at every attempt.",
        "a recipient's mail was first held longer ago than `held_longer_than`, and a retry since has failed too",
        f"it has gone, or was refused. {_DELETED}",
        f"{_WHERE_TO_LOOK} Then have the mail server try again (`postqueue -f`). Mail that was deleted there is "
        "forgotten two hours after its last attempt.",
        about="direction",
    ),
    Alarm(
        "mail_stuck",
        "All new {about} mail is held",
        "All mail of this direction that came since the last one went is held. Mail among our own users does not "
        "count.",
        "three or more mails that had not been tried before were held since the last one went, and for half a minute "
        "none goes",
        "a mail goes, or none was held for ten minutes",
        _WHERE_TO_LOOK,
        about="direction",
        after_s=30.0,
    ),
    Alarm(
        "keys_gone",
        "Mail for {about} finds no quantum key",
        "Mail to a peer finds no quantum key, though the rates may say otherwise: it is held, or goes under another "
        "level that its policy lists.",
        "a key was asked for and did not come",
        "keys are there again, and none was missed for two minutes",
        "`qumail-relay keys status` shows who uses the keys. Ask the KMEs' operator why no more come, and have less "
        "mail use them: level aes in place of otp, or pqc beside pqc+aes (policies/README.md).",
        about="peer",
        clear_s=120.0,
    ),
    Alarm(
        "keys_run_low",
        "Quantum keys run low: {about}",
        "At the present rates the keys of a KME for a peer will be gone soon.",
        "the forecast has been below `alarm` of the KME for a minute",
        "it is above it for a minute",
        "`qumail-relay keys status` shows who uses the keys, while there is time. Ask for a higher rate, or have less "
        "mail use them: level aes in place of otp (policies/README.md).",
        about="KME and peer",
        after_s=60.0,
        severity="warning",
    ),
    Alarm(
        "peer_without_keys",
        "No quantum keys are used with {about}",
        "There are KMEs, and no group of them is shared with a peer: its mail is sealed without quantum keys.",
        "the relay serves with such a peer",
        "kme_groups of the peer says which, or that none is meant",
        "Write kme_groups in [peers.*], or kme_groups = [] where that is meant.",
        about="peer",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "kme_away",
        "KME {about} does not answer",
        "A KME does not answer, or not as it should: it gives no keys, and arriving mail under them is held.",
        "for half a minute no call has succeeded and one has failed, or the relay has stopped calling it (breaker)",
        "it has answered again for half a minute",
        "`qumail-relay check` asks it and says what is wrong: address, certificates, what it answers. Others of its "
        "group are used meanwhile; mail is held where there is none.",
        about="KME",
        clear_s=30.0,
        severity="warning",
    ),
    Alarm(
        "keys_unwatched",
        "The number of keys is unknown: {about}",
        "A KME has not said for a minute how many keys it has: when they run low is not seen.",
        "its last status is older than a minute",
        "it says so again",
        "`qumail-relay keys status` says what is wrong. Where the KME is away, see `kme_away`.",
        about="KME and peer",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "received_keys_refused",
        "KME {about} gives no keys for arriving mail",
        "A KME, or a proxy in front of it, answers calls for keys of arriving mail without a word about a key, in "
        "whatever form, or not at all. Mail under quantum keys of its group is held.",
        "a call was answered so, or two in a row were not, and within a minute none with keys",
        "one is answered with keys, or says that a key is not there",
        "`qumail-relay check` and the log's `received_keys_refused` have what it says. It is a fault of the KME, of a "
        "proxy, or of their settings (paths, methods, certificates): ask their operator. A KME that says so of "
        "keys which are not there needs a rule in `errors` of its table.",
        about="KME",
        clear_s=0.0,
    ),
    Alarm(
        "certificate_ends",
        "A certificate ends soon: {about}",
        "A certificate ends within 30 days: what depends on it stops then. Said daily.",
        "there are 30 days left",
        "another one is in its place, or it has ended",
        _RENEW,
        about="certificate",
        severity="warning",
    ),
    Alarm(
        "certificate_ended",
        "A certificate has ended: {about}",
        "A certificate has ended: mail that depends on it is held. Said daily.",
        "its time is over",
        "another one is in its place",
        _RENEW,
        about="certificate",
    ),
    Alarm(
        "certificates_refused",
        "KME {about} does not take its renewed certificates",
        "The files of a KME's CA, or of our certificate and key for it, were renewed, and the KME cannot be asked with "
        "them. Those before are used, until they end or the relay is started anew.",
        "with the new files it has not answered, over a new connection, and with those before it does; or they do not "
        "belong together",
        "it answers with them, or others are in their place",
        "The log's `kme_certificates_refused` or `kme_certificates_not_renewed` says why. Is the CA that of the KME's "
        "own certificate? Is ours from a CA that the KME takes, and the key that of ours? Put the right files there, "
        "or those before: they are taken up by themselves.",
        about="KME",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "store_unwritable",
        "All mail is held: the store cannot be written",
        "The store cannot be written, or not in time: all mail is held, and no KME is asked for keys.",
        "a row could not be written within ten seconds; or its file was moved, deleted or emptied, or is damaged",
        "it can be written again",
        "`qumail-relay check` says the cause: a full disk, a program that locks the database, a PostgreSQL that is "
        "away, rights, a file that was moved. What is held comes again by itself.",
        clear_s=15.0,
        not_ready=True,
    ),
    Alarm(
        "store_is_another",
        "The store is not the one that was",
        "The store is not the one from which this relay served, or was sealed under another site secret: it is empty, "
        "older, another one, or it cannot be said. What it has forgotten is lost: received keys, quarantine, who has "
        "had which mail. Mail from now on goes on as usual; what was sealed before is put in quarantine.",
        "its id or mark is not what the file `restore.check` says, or it needs a site secret that is missing",
        "an administrator accepts it",
        "Is it meant, as after a restore or a move? Then say so: `qumail-relay store accept`. If not, stop the relay "
        "and find out what has become of the store or of the secret; put it back, or restore a backup "
        "(deploy/OPERATING.md).",
        clear_s=0.0,
    ),
    Alarm(
        "file_unusable",
        "A file cannot be used: the relay would not start again",
        "The relay serves with what it has read before, but a file that a start or the renewal of certificates needs "
        "is missing, damaged, or not readable. After the next restart all mail would be held.",
        "relay.toml, a peer's document, the identity, or a certificate, key or list that relay.toml names was unusable "
        "at two looks",
        "all are usable again, or a relay has started with them",
        "The cause names each file and what is wrong. Do not restart the relay before it is right. Put the file back "
        "from a backup (deploy/OPERATING.md), or undo the edit; `qumail-relay check` then says whether all is well.",
        after_s=15.0,
        clear_s=0.0,
    ),
    Alarm(
        "disk_full",
        "The disk is nearly full",
        "The disk of the state directory is nearly full. Where nothing can be written, mail is held.",
        "less than `disk_free` is free",
        "a tenth more than that is free",
        "Make room there: `df`, `du -x`. The relay itself needs little; its quarantine has a limit in relay.toml.",
        clear_s=15.0,
    ),
    Alarm(
        "audit_unwritable",
        "Mail is held: the audit record cannot be written",
        "The audit record cannot be written: mail that needs a line in it is held.",
        "no line can be written",
        "it can be written again",
        "`qumail-relay check` says the cause, mostly rights or a full disk.",
        clear_s=15.0,
    ),
    Alarm(
        "key_receiver_ended",
        "Arriving mail is held: a process of the relay has ended",
        "The second process has ended, which asks for received keys.",
        "it has ended",
        "the relay was started anew",
        "A service manager starts the relay anew by itself; else `qumail-relay serve`. The log says why it ended.",
        clear_s=0.0,
        not_ready=True,
    ),
    Alarm(
        "not_watched",
        "The relay is not watched",
        "The relay has not looked after itself for a minute: what the other conditions say may be old.",
        "nobody has looked for a minute",
        "somebody looks again",
        "Does a disk hang (`dmesg`)? Is the host overloaded (`uptime`)? If not, start the relay anew and report it.",
        clear_s=0.0,
        not_ready=True,
    ),
    Alarm(
        "sealed_mail_unopened",
        "Sealed mail for this site waits, and cannot be opened here",
        "Sealed mail for this site came to the listener of outgoing mail, and this relay cannot open it: it has no "
        "[incoming], or the mail is for others as well. It is held, and its sender's server gives it up in some days.",
        "such a mail was held within ten minutes",
        "none was for ten minutes, and no outgoing mail waits for a cause of no other alarm",
        "Have the mail server hand mail that arrives to the relay of this site that opens it. Where there is none, set "
        "[incoming] (`qumail-relay setup --replace --integration content-filter`). A site that only sends gives its "
        "peers a new invitation, which says so (`qumail-relay identity invite`); they refuse mail for it from then on.",
        clear_s=0.0,
    ),
    Alarm(
        "mailbox_unwatched",
        "Mailbox {about} is not watched",
        "A mailbox of [imap.*], or a folder of it, cannot be watched: sealed mail stays there as it is, and its keys "
        "are destroyed in time.",
        "for half a minute its server could not be reached, refused the login, or did not let a folder be opened",
        "all its folders were looked through",
        "`qumail-relay check` logs in and says what is wrong; `imap_unavailable` and `imap_login_refused` in the log "
        "have what the server said. A server that is away is tried again by itself. A new password or token counts "
        "within a minute, a change of [imap.*] from a restart.",
        about="account",
        after_s=30.0,
        clear_s=0.0,
    ),
    Alarm(
        "mail_put_aside",
        "Mail in the name of {about} was put aside{reason}",
        "Mail in a peer's name, by what its sealed layers or its sender say, could not be opened, and is in "
        "quarantine. Its sender believes it delivered, its recipients do not know of it, and its keys are destroyed in "
        "time. The first of each peer and reason is told at once, what changes in a digest an hour. Said daily.",
        "such a mail is in quarantine, for each peer and reason",
        "none of that peer and reason is",
        "`qumail-relay quarantine list` has it, and deploy/RUNBOOK.md (Reasons of the quarantine) says what to do for "
        "each reason. Release what is genuine once the cause is fixed, and drop the rest.",
        about="peer and reason",
        clear_s=0.0,
        digest_s=3600.0,
        severity="warning",
        reasons=PUT_ASIDE,
    ),
    Alarm(
        "unsealed_from_peer",
        "Mail in the name of {about} came unsealed{reason}",
        "Mail in the name of a peer came unsealed, though mail of its relay is sealed. It was forged, or it left the "
        "peer's mail server past its relay, or went over a mailing list. Or it was sealed, and nobody here could tell: "
        "for a former identity of this site, or changed by a mail server on its way. The peer's relay is told, once "
        "an hour at most.",
        "such a mail came, for each peer, and apart for mail that has its domain in From alone",
        "none came for an hour",
        "The log's `came_unsealed_in_a_peers_name` has each mail. Is it genuine? With a file smime.p7m it was sealed: "
        "compare the identity that the peer has of this site (`qumail-relay identity show` at both), and see what "
        "`check` says of Postfix. Else call the peer's administrators: "
        'their mail server may have lost its filter. With `require = ["sealed"]` in the policy file of the peer '
        "(policies/README.md) such mail is marked, put in quarantine or refused.",
        about="peer and reason",
        clear_s=3600.0,
        digest_s=3600.0,
        severity="warning",
        reasons={"sender": "it has its domain in MAIL FROM", "author": "it has its domain in From alone"},
    ),
    Alarm(
        "unsealed_at_peer",
        "Mail of ours comes unsealed to {about}",
        "The relay of a peer says that mail with our domain in MAIL FROM comes there unsealed. Our mail server no "
        "longer hands its mail to the relay, and it leaves in clear, or somebody forges our name.",
        "the peer's relay says so",
        "it has not said so for two hours; it says so once an hour at most",
        "`qumail-relay check --postfix` says whether Postfix hands its mail to the relay. Send a mail to the peer: "
        "does the log have `sealed_and_sent`? If so, ask the peer's administrators where the mail came from. SPF lets "
        "their mail server refuse what is forged.",
        about="peer",
        clear_s=7200.0,
        digest_s=3600.0,
    ),
    Alarm(
        "quarantine_grows",
        "Much sealed mail cannot be opened",
        "Much sealed mail comes that cannot be opened. Somebody forges it, or a peer has other keys or certificates.",
        "more than `unopened` such mails were put in quarantine within ten minutes",
        "it was less for ten minutes",
        "`qumail-relay quarantine list` has reason and peer. From one real peer: talk to its administrators, their "
        "keys or certificates are not what is known here. Forged mail hurts nobody, and can be dropped: "
        "`qumail-relay quarantine drop`.",
        severity="warning",
    ),
    Alarm(
        "quarantine_full",
        "The quarantine is nearly full",
        "The quarantine has hardly any room left: mail that cannot be opened will be held.",
        "more than four fifths of quarantine.max_size are taken, or a mail found no room",
        "less is taken",
        "Release or drop what lies there: `qumail-relay quarantine list`.",
    ),
    Alarm(
        "clear_text",
        "Mail leaves in clear",
        "Mail leaves in clear to elsewhere. Raised only where `clear_text` is set, at a site that means to send none.",
        "a mail left so",
        "none did for ten minutes",
        "`qumail-relay audit export --below rsa` has which, and `qumail-relay policy explain` why.",
        severity="warning",
    ),
    Alarm(
        "tripwire",
        "Mail was about to leave otherwise than policy wants",
        "What was about to leave was not sealed as policy wants, and was held: a fault of the relay.",
        "it happened",
        "it did not happen again for ten minutes",
        "The mail is safe in the queue. Keep the log's line `tripwire` and the mail, and report it.",
    ),
    Alarm(
        "policy_broken",
        "The policy files are broken",
        "The policy files are broken; those from before are in force, also where a process is started meanwhile.",
        "files were read that are wrong",
        "they are right again",
        "`qumail-relay policy check` names file and line.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "policy_holds",
        "Policy holds {about} mail",
        "Mail waits that policy holds for another reason than keys: it covers nobody there, or lists no level that can "
        "be done. It waits until policy is changed, or its sender's server gives up.",
        "such mail was tried again",
        f"the last of it has gone, or was refused. {_DELETED}",
        "`qumail-relay policy explain SENDER RECIPIENT` says which file and line hold it; `postqueue -p` shows both "
        "addresses. Change the policy and have the mail tried again (`postqueue -f`), or have it refused at once: "
        'otherwise = "refuse" (policies/README.md). After `postsuper -d` it ends by itself, two hours after the last '
        "attempt. To end it within a minute: stop the relay, delete `held.json` beside the store or secret, "
        "start it.",
        about="direction",
        severity="warning",
    ),
    Alarm(
        "policy_edit_waits",
        "An edit of the policies does not come into force",
        "An edit of the policy files waits, since somebody has one of them open for writing or they go on changing. "
        "Those from before are in force.",
        "it has waited for a minute",
        "it comes into force, or is undone",
        "The cause names the file and, where the system shows it, the program that has it open: save and end that. "
        "`qumail-relay policy install` puts a whole set into force at once.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "policy_test_fails",
        "A test of the policies in force fails",
        "A test in tests.toml fails since a day has passed: a file or rule has begun or ended, and mail is decided "
        "otherwise than expected.",
        "a test of the policies in force fails today",
        "none does",
        "`qumail-relay policy test` names each. Renew or take out what has ended, or give the test the same `until`.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "policy_in_vain",
        "Policy asks for what cannot be done",
        "Policy files ask for what this relay cannot do: the mail that they cover is held or leaves weaker.",
        "a file names a KEM that is missing here, a rule or floor fits no mail, or all mail to a peer is held",
        "none does",
        "`qumail-relay check` names file and line of each.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "next_hop_away",
        "No {about} mail is delivered: the next hop does not answer",
        "The next hop cannot be reached: mail is held.",
        "it could not be reached at a mail, and cannot when it is tried at once (as far as EHLO)",
        "mail is delivered, or it can be reached when it is tried",
        "`qumail-relay check` tries it. If it is your own mail server: is it up, does it listen there, what does its "
        "log say of the relay's connections?",
        about="direction",
        clear_s=5.0,
    ),
    Alarm(
        "next_hop_refuses",
        "No {about} mail is delivered: the next hop does not take it",
        "The next hop takes no mail: it puts it off (4xx), and it is held, or refuses it (5xx), as senders hear.",
        "three mails or more were put off or refused within ten minutes, and none was delivered",
        "a mail is delivered, or for ten minutes none was put off or refused and none waits for the next hop",
        "The log's `copy_not_delivered` has what it says. Mostly it does not know the relay or the recipients: its "
        "relay_domains, mynetworks, or a filter behind it.",
        about="direction",
        clear_s=5.0,
    ),
    Alarm(
        "canary_late",
        "Mail to or from {about} may not get through",
        "No canary has come back from a peer's relay: mail to it, or from it, does not get through, or only late.",
        "none has come back for `every` and `late_after` of [canary] together",
        "one comes back",
        "The log's `canary_not_sent` says why one did not leave, and `canary_dropped` why a receipt did not count. "
        "`qumail-relay trace` shows how far one came, by the `mail` that its line `canary_sent` has. If all is well "
        "here, ask the peer's administrators: do they take mail for qumail-canary, and does their relay answer?",
        about="peer",
        clear_s=0.0,
    ),
    Alarm(
        "event_loop_late",
        "The relay is slow",
        "A process of the relay comes late to what is due: all mail is slow.",
        "three times in a minute it came more than a quarter of a second late",
        "it did not for a minute",
        "Is the host overloaded (`uptime`, `vmstat 1`), or does it swap? If not, report it, with the log and what mail "
        "came at that time.",
        severity="warning",
    ),
    Alarm(
        "memory_full",
        "New mail waits: memory is full",
        "The messages in flight take all the memory that they may: new mail waits, then hears 452.",
        "nine tenths of limits.messages_in_flight are taken for ten seconds, or mail was turned away for want of room",
        "there was room for a minute",
        "Something behind the relay is slow, or much large mail comes at once. If it stays: a larger "
        "limits.messages_in_flight, where the host has the memory.",
        after_s=10.0,
    ),
    Alarm(
        "connections_full",
        "All connections are taken",
        "Clients hold all the connections that a listener may have. Others are refused with 421, and their mail waits "
        "in the queue of the server that sends it.",
        "connections were refused since all were taken, for ten seconds",
        "none was refused for a minute",
        "`ss --tcp --processes` as root says who holds connections to the relay's ports. Any user of this host can "
        "open some: end that program. If it is Postfix itself: a larger `connections` of the listener.",
        after_s=10.0,
    ),
    Alarm(
        "clock_jumped",
        "The clock is wrong",
        "The clock of this host was set by more than a minute while the relay ran. Certificates, the age of mail and "
        "the time of keys are looked at by it.",
        "it shows a time that is more than a minute off what has passed",
        "it was set back, or has gone on for an hour as it is",
        "`timedatectl` and `chronyc tracking`: which time is right? Set it right, and find out who set it.",
        clear_s=0.0,
        severity="warning",
    ),
    Alarm(
        "clock_differs",
        "The clock of this host is not that of KME {about}",
        "A KME's replies show another time than the clock of this host, and one of the two is wrong. What is sealed by "
        "a wrong clock is put aside by the peer's relay, and what comes from a peer is put aside here.",
        "the Date of its last reply is more than five minutes off",
        "the two agree",
        "`timedatectl` and `chronyc tracking`: which time is right? Set it right here, or ask the KME's operator. Then "
        "look at what was put aside meanwhile: `qumail-relay quarantine list --reason outside-window`.",
        about="KME",
        clear_s=0.0,
    ),
    Alarm(
        "history_not_written",
        "The history is not written",
        "What the page shows of hours and days is not written.",
        "the store did not take it",
        "it does",
        "`qumail-relay check` looks at the store.",
        clear_s=0.0,
        severity="warning",
    ),
)
ALARMS: Final = {each.name: each for each in _ALL}
"""All alarms by name, in the order of this file."""
