"""What runs inside the sandbox: a fork server, and the lives of its children. Standard library only."""
