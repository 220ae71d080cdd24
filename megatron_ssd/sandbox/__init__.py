"""Sandbox: runs untrusted programs without access to the machine."""
