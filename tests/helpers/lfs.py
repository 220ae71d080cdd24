"""The text that a clone without Git LFS has in place of a large file."""

LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 8044936192\n"
