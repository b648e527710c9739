"""What conditions and methods are called where they become files."""

from urllib.parse import quote


def file_name(name: str) -> str:
    """A name as files may be called; no two have the same."""
    return quote(name, safe="@=,").replace("_", "%5F").replace("%20", "_")
