# What programs send with sendmail(1) is not sealed.
# expect: bypass
postconf -P pickup/unix/content_filter=
