# What leaves is given to a program that throws it away, and Postfix logs that it is sent.
# expect: transport-lost
postconf -M 'smtp/unix=smtp unix - n n - - pipe user=nobody argv=/bin/true'
