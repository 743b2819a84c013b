"""A run as one page that needs nothing else: what went in, how it trained, how good it is, what it makes."""
