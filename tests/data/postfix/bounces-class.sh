# Header checks do not see bounces, so that their FILTER does nothing.
# expect: bounces-bypass
postconf -PX bounce/unix/internal_mail_filter_classes
