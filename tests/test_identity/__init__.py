"""Who a site is and whom it trusts: keys, certificates, peer documents, and the commands for them.
Standard: RSA keys, which are slow to make, are made once and shared; everything else is made for one test.
"""
