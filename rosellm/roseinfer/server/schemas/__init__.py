"""What comes in (pydantic) and what goes out (msgspec) over HTTP."""
