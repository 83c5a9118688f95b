# Processes of this Postfix are not told its directory, and read the one that they were built for.
# expect: bypass
postconf -e 'import_environment = TZ LANG=C'
