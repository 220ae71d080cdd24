"""The code inside the sandbox: a fork server with its children. It uses only the standard library."""
