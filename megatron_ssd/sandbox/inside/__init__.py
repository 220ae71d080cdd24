"""What runs inside the sandbox: a fork server with its children. Standard library only."""
