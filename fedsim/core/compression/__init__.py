"""Compression of what travels between devices and server: codecs, one family in each file, their messages, and both links."""
