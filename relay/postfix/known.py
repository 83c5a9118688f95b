"""Settings about which no rule here says anything, and which are not known to be harmless: someone has to judge them.
Standard: postconf(5); a name in neither list may lead mail past the relay, stop it or lose it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator

from relay.postfix.settings import PostfixFault, PostfixSettings

HARMLESS = re.compile(
    r"""
    .*(tls|sasl|cache).* | .*_(mailbox|milter|xforward|xclient|verp)_.*
    | (postscreen|tlsproxy|anvil|maillog|syslog|smtputf8|address_verify|lmtp_pix|smtp_pix|debug|postlog|dnsblog)_.*
    | (unknown|unverified|plaintext|reject|invalid|non_fqdn|access_map|maps_rbl|multi_recipient|defer|relay_domains)_.*
    | .*_(timeout|time_limit|ttl|reply|banner|footer|path|cost|discount|loan|slots|refill_(delay|limit)|recipient)
    | .*_(concurrency_limit|recipient_limit|initial_destination_concurrency|concurrency_\w+_feedback|cohort_limit)
    | smtpd_\w*_(limit|limit_exceptions|time|threshold|logging|length|required|keywords?|lookup)
    | smtpd?_(helo|ehlo)_name | smtpd_(discard|forbid|authorized|policy_service|sender_login|relay_before|client_ipv)\w*
    | smtpd_(delay|helo|per_request|null|noop|log|hide)_?\w* | smtpd_reject_unlisted_sender
    | (html|readme|sample|manpage|meta|shlib|config|command|data|mail_spool|cyrus_sasl_config)_directory
    | virtual_(mailbox|uid|gid|minimum)_\w+ | local_(recipient|login)\w+ | relay_(recipient|clientcert)\w*
    | my(hostname|domain|origin|networks|networks_style) | (proxy_)?(interfaces|read_maps|write_maps)
    | (sender_canonical|sender_bcc|recipient_bcc|generic)_(classes) | always_bcc | (sender|recipient)_bcc_maps
    | (home_mailbox|alias_database|biff|compatibility_level|mail_(name|owner|version)|setgid_group|recipient_delimiter)
    | (append_dot_mydomain|append_at_myorigin|disable_vrfy_command|strict_(rfc821_envelopes|mailbox_ownership))
    | (default_(privs|database_type)|enable_(long_queue_ids|original_recipient)|fast_flush_domains|hash_queue_\w+)
    | (smtp_(address_preference|randomize_addresses|balance_inet_protocols|dns_support_level|always_send_ehlo))
    | (delay_logging_\w+|max_(idle|use)|ipc_\w+|owner_request_special|expand_owner_alias|prepend_delivered_header)
    | (parent_domain_matches_subdomains|alternate_config_directories|multi_instance_\w+)
    | (allow_percent_hack|swap_bangpath|resolve_dequoted_address|delay_warning_time|bounce_size_limit)
    | smtpd_proxy_options | internal_mail_filter_classes | (smtp|lmtp)_(fallback_relay|line_length_limit)
    | \w+_rate_delay | smtpd_(\w+_restrictions|restriction_classes) | (non_)?smtpd_milters | milter_\w+
    | (mailbox|message)_size_limit | relay_domains | (canonical|virtual_alias|\w+_canonical)_(maps|domains)
    | (header|body|(mime|nested)_header)_checks
    | authorized_(mailq|flush)_users | (alias_maps|mydestination|inet_protocols|queue_directory)
    | respectful_logging | show_user_unknown_table_name | header_from_format | bounce_template_file
    | undisclosed_recipients_header | masquerade_(classes|domains|exceptions) | \w+_host_lookup
    """,
    re.VERBOSE,
)
"""TLS, logins, logs, limits, mailboxes, names, and what rules ask for where it matters (deploy/POSTFIX-WATCH.md)."""
_NOWHERE = "/dev/null"
"""A place that keeps no mail, whatever the setting."""


def unjudged(settings: PostfixSettings, known: Collection[str]) -> Iterator[PostfixFault]:
    """Settings that no rule has asked for, after all rules; `known` are those that the administrator vouches for."""
    written = [(f"main.cf: {name} = {value}", name, value) for name, value in settings.written.items()]
    for service in settings.services:
        written += [
            (f"master.cf {service.key}: {name}={value}", name, value) for name, value in service.overrides.items()
        ]
    for where, name, value in written:
        said = f"{name} = {value}".rstrip()
        judged = name in settings.asked or HARMLESS.fullmatch(name) is not None
        if name in settings.defaults and said not in known and (not judged or _NOWHERE in value):
            yield PostfixFault(
                "unjudged",
                where,
                "whether mail goes past the relay, waits or is lost by it is not known here",
                f"take it out; or if no mail does: [postfix] known = [{json.dumps(said)}] in relay.toml, and restart "
                "the relay",
            )
