"""A container with nothing in it but a program: what runs untrusted code, and what it is kept from."""
