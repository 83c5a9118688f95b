# A table leads mail that has come back to the relay once more.
# expect: loop
postconf -e 'transport_maps = inline:{bob.example=qumail:[127.0.0.1]:15024}'
