"""The operators' page: whether mail flows, what is wrong, and what to do.
Standard: WCAG 2.2 AA; no external or inline resources, read-only; everything is escaped.

    now.py        the data shown, at one moment
    verdict.py    the overall state, by active alarms
    sections.py   mails; today.py mails of the last hours; waiting.py quarantined and held mail; keys.py keys;
                  canary.py canaries; site.py everything else: each a pure function of that moment
    html.py       elements; charts.py curves and bars; words.py numbers, times and reasons for people
    feed.py       updates, rendered once for all viewers
    routes.py     the routes of the server
    page.css, page.js, icon.svg
"""
