"""The operators' page: one page that shows at a glance whether mail flows, what is wrong, and what to do.
Standard: WCAG 2.2 AA; nothing from elsewhere, nothing inline, nothing that can be changed; all is escaped.

    now.py        what is shown, at one moment
    verdict.py    whether mail flows, and what is wrong, by the conditions that stand
    sections.py   mails; today.py mails of the last hours; waiting.py what is put aside and held; keys.py keys;
                  canary.py canaries; site.py everything else: each a pure function of that moment
    html.py       elements; charts.py curves and bars; words.py numbers, times and reasons as people read them
    feed.py       what has changed, once for all viewers
    routes.py     what the server answers
    page.css, page.js, icon.svg
"""
